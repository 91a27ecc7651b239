use super::super::mark::is_supported_in;
use super::super::record::Description;
use super::existing::JSON_ROW;
use super::*;
use crate::captioner::Fallback;

fn write(path: &Path, format: OutputFormat, names: &[&str]) -> Vec<String> {
    let (mut output, known) = Output::file(path, format, false, &[]).unwrap();
    let description = Description::Nothing { text: "x".into(), reason: Fallback::because("y") };
    for path in names {
        assert!(
            output
                .row(&Record { path: Path::new(path), description: &description, stamp: None })
                .is_ok()
        );
        if format == OutputFormat::Json {
            let bytes = std::fs::read(path_of(&output)).unwrap();
            assert!(serde_json::from_slice::<Vec<serde_json::Value>>(&bytes).is_ok());
        }
    }
    assert!(output.end().is_ok());
    known.into_iter().map(|entry| entry.path).collect()
}

fn path_of(output: &Output) -> &Path {
    match &output.target {
        OutputTarget::File { path, .. } | OutputTarget::Stream { path, .. } => path,
        OutputTarget::Stdout(_) => Path::new(""),
    }
}

#[test]
fn rows_are_appended_and_the_file_is_valid_after_each() {
    let folder = tempfile::tempdir().unwrap();
    for format in [
        OutputFormat::Text,
        OutputFormat::Tsv,
        OutputFormat::JsonLines,
        OutputFormat::Csv,
        OutputFormat::Json,
    ] {
        let path = folder.path().join(format.name());
        assert!(write(&path, format, &[]).is_empty());
        assert!(write(&path, format, &["a", "b"]).is_empty());
        assert_eq!(write(&path, format, &["c"]), ["a", "b"]);
        assert_eq!(write(&path, format, &[]), ["a", "b", "c"]);
        let once = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        write(&path, format, &["a", "b", "c"]);
        assert_eq!(std::fs::read(&path).unwrap(), once, "{format:?}");
        // An incomplete row.
        std::fs::write(&path, &once[..once.len() - 4]).unwrap();
        let known = write(&path, format, &[]);
        assert!(!known.is_empty() && known.len() <= 3, "{known:?}");
        let missing = &["a", "b", "c"][known.len()..];
        write(&path, format, missing);
        assert_eq!(std::fs::read(&path).unwrap(), once, "{format:?} after an incomplete row");
    }
}

#[test]
fn foreign_files_and_files_of_other_runs_are_not_touched() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notes.csv");
    std::fs::write(&path, "path,caption\na,b\n").unwrap();
    let error = Output::file(&path, OutputFormat::Csv, false, &[]).unwrap_err();
    assert!(error.detail().contains("--overwrite"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"path,caption\na,b\n");
    let held = Output::file(&path, OutputFormat::Csv, true, &[]).unwrap();
    let error = Output::file(&path, OutputFormat::Csv, true, &[]).unwrap_err();
    assert!(error.detail().contains("another run"), "{error}");
    drop(held);
    let error =
        Output::file(&folder.path().join("no/such"), OutputFormat::Csv, true, &[]).unwrap_err();
    assert!(error.detail().contains("folder"), "{error}");
}

fn photos(names: &[&str]) -> Vec<InputPhoto> {
    names.iter().map(|name| InputPhoto { path: name.into(), content: None }).collect()
}

/// The files of other programs, of people, and of killed runs that cannot be told from those.
#[test]
fn a_file_that_is_not_ours_stays_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    let ours = |format| {
        let path = folder.path().join("ours");
        write(&path, format, &["a", "b"]);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        text
    };
    let rows = ours(OutputFormat::JsonLines);
    let table = ours(OutputFormat::Csv);
    let array = ours(OutputFormat::Json);
    let foreign = "{\"file_name\":\"1.jpg\",\"text\":\"one\"}";
    let short = "{\"path\":\"1.jpg\",\"caption\":\"one\"}";
    for (name, content) in [
        ("a.jsonl", format!("{foreign}\n{foreign}")),
        ("a.jsonl", foreign.to_owned()),
        ("a.jsonl", format!("{foreign}\n{{\"file_na")),
        ("a.jsonl", format!("{short}\n{short}\n")),
        ("a.jsonl", format!("{rows}{short}")),
        ("a.jsonl", format!("{rows}{short}\n")),
        ("a.jsonl", format!("{rows}my notes")),
        ("a.jsonl", "my notes".to_owned()),
        ("a.json", format!("[{foreign}]")),
        ("a.json", format!("[\n{foreign},\n{foreign}\n]\n")),
        ("a.json", format!("[\n{foreign},\n{{\"file_na")),
        ("a.json", array.replace("\n]", ",\nmy notes\n]")),
        ("a.json", array.replace("\n]", ",\nmy notes")),
        ("a.csv", "path,caption\na,b".to_owned()),
        ("a.csv", format!("{table}my notes")),
        ("a.csv", format!("{table}my notes\n")),
        ("a.csv", format!("{table}my notes, and more")),
        ("a.csv", "my notes".to_owned()),
        ("a.tsv", "1.jpg\tone\n2.jpg\ttwo".to_owned()),
        ("a.tsv", "1.jpg\tone\n2.jpg\ttwo\n".to_owned()),
        ("a.tsv", "1.jpg\tone\n2.j".to_owned()),
        ("a.txt", "my notes".to_owned()),
        ("a.txt", "my notes\n".to_owned()),
    ] {
        let path = folder.path().join(name);
        let format = OutputFormat::of_path(&path);
        if format.is_plain() && !is_supported_in(folder.path()) {
            // Without marks, rows of text are not told apart.
            continue;
        }
        std::fs::write(&path, &content).unwrap();
        let error = Output::file(&path, format, false, &photos(&["my.jpg"]));
        let error = error.expect_err(&content);
        assert!(error.detail().contains("--overwrite"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
        std::fs::remove_file(path).unwrap();
    }
}

#[test]
fn a_row_without_line_break_is_kept_and_a_torn_one_of_ours_is_not() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["a.txt", "a.tsv", "a.jsonl", "a.csv"] {
        let path = folder.path().join(name);
        let format = OutputFormat::of_path(&path);
        write(&path, format, &["a", "b"]);
        let whole = std::fs::read_to_string(&path).unwrap();
        let open = |content: &str, known: &[&str]| {
            std::fs::write(&path, content).unwrap();
            Output::file(&path, format, false, &photos(known)).map(|(_, entries)| entries)
        };
        // The last caption may be incomplete, except in JSON.
        let known = open(whole.trim_end(), &[]).unwrap();
        assert_eq!(known.len(), if name == "a.jsonl" { 2 } else { 1 }, "{name}");
        if name != "a.jsonl" {
            // The row that begins like it replaces it; another one follows it.
            assert_eq!(std::fs::read_to_string(&path).unwrap(), whole.trim_end(), "{name}");
            write(&path, format, &["b"]);
            assert_eq!(std::fs::read_to_string(&path).unwrap(), whole, "{name}");
            let edited = format!("{} edited", whole.trim_end());
            open(&edited, &[]).unwrap();
            write(&path, format, &["b"]);
            let kept = std::fs::read_to_string(&path).unwrap();
            assert!(kept.starts_with(&format!("{edited}\n")) && kept.len() > edited.len() + 3);
            std::fs::write(&path, &whole).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), whole, "{name}");
        let torn = if name == "a.jsonl" { "{\"path\":\"photo" } else { "phot" };
        assert_eq!(open(&format!("{whole}{torn}"), &["photo.jpg"]).unwrap().len(), 2);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), whole, "{name}");
        if name != "a.jsonl" {
            assert!(open(&format!("{whole}{torn}"), &["other.jpg"]).is_err(), "{name}");
        }
    }
}

#[test]
fn blank_lines_before_an_array_are_no_part_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.json");
    for start in ["\n\n", "\n\n[", "\n[\n"] {
        std::fs::write(&path, start).unwrap();
        write(&path, OutputFormat::Json, &["a"]);
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(serde_json::from_slice::<Vec<serde_json::Value>>(&bytes).unwrap().len(), 1);
    }
}

#[test]
fn nothing_is_discarded_before_there_is_something_new() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jsonl");
    std::fs::write(&path, "old\n").unwrap();
    let (mut output, _) = Output::file(&path, OutputFormat::JsonLines, true, &[]).unwrap();
    assert!(output.end().is_ok());
    assert_eq!(std::fs::read(&path).unwrap(), b"old\n");
    let description = Description::Nothing { text: "x".into(), reason: Fallback::because("y") };
    let record = Record { path: Path::new("a"), description: &description, stamp: None };
    assert!(output.row(&record).is_ok());
    assert!(std::fs::read(&path).unwrap().starts_with(JSON_ROW));
}

#[test]
fn rows_of_another_program_are_not_written_over() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.json");
    let (mut output, _) = Output::file(&path, OutputFormat::Json, false, &[]).unwrap();
    std::fs::write(&path, "[\n]\nmy notes").unwrap();
    let description = Description::Nothing { text: "x".into(), reason: Fallback::because("y") };
    let record = Record { path: Path::new("a"), description: &description, stamp: None };
    match output.row(&record) {
        Err(WriteError::Error(error)) => assert!(error.detail().contains("changed"), "{error}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(std::fs::read(&path).unwrap(), b"[\n]\nmy notes");
}
