//! Checks the documents: commands and their output match the program, links resolve, and every
//! setting, parameter, endpoint and error code is documented.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cutline::captioner::{Budget, Decoders};
use cutline::image::{DecodeLimits, ImageFormat};
use serde_json::Value;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const SERVER: &str = "http://127.0.0.1:8000";

/// A Markdown file.
struct Document {
    /// Relative to the repository.
    name: String,
    path: PathBuf,
    text: String,
}

impl Document {
    fn open(name: &str) -> Self {
        let path = Path::new(ROOT).join(name);
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
        Self { name: name.to_owned(), path, text }
    }

    /// The text without fenced blocks.
    fn prose(&self) -> String {
        self.fences().filter(|(language, _)| language.is_none()).map(|(_, line)| line).collect()
    }

    /// The lines of all fenced blocks of a language.
    fn fenced(&self, language: &str) -> Vec<String> {
        self.fences().filter(|(l, _)| *l == Some(language)).map(|(_, line)| line).collect()
    }

    /// Each line, with the language of the fenced block that it is in.
    fn fences(&self) -> impl Iterator<Item = (Option<&str>, String)> {
        let mut language = None;
        self.text.lines().filter_map(move |line| {
            if let Some(fence) = line.trim_start().strip_prefix("```") {
                language = if language.is_none() { Some(fence) } else { None };
                return None;
            }
            Some((language, format!("{line}\n")))
        })
    }

    /// The first fenced block of `language` after `mark`.
    fn block(&self, mark: &str, language: &str) -> &str {
        let (_, rest) =
            self.text.split_once(mark).unwrap_or_else(|| panic!("{} lacks {mark:?}", self.name));
        let (_, rest) = rest.split_once(&format!("```{language}\n")).expect("a block follows");
        rest.split_once("```").expect("the block ends").0
    }

    /// The text between single backticks, outside of blocks.
    fn code_spans(&self) -> Vec<String> {
        self.prose().split('`').skip(1).step_by(2).map(str::to_owned).collect()
    }

    /// The targets of links and pictures.
    fn links(&self) -> Vec<String> {
        // Links may be code on the outside, but not on the inside: their targets have no backticks.
        let prose = self.prose();
        let after = |mark: &'static str, end: char| {
            let rest = prose.split(mark).skip(1);
            rest.filter_map(move |rest| rest.split_once(end)).map(|(link, _)| link.to_owned())
        };
        after("](", ')').chain(after("src=\"", '"')).collect()
    }

    /// The anchors of the headings, as GitHub and most forges make them.
    fn anchors(&self) -> BTreeSet<String> {
        let headings = self.prose();
        let headings = headings.lines().filter_map(|line| {
            line.strip_prefix('#').map(|rest| rest.trim_start_matches('#').trim().to_lowercase())
        });
        let slug = |heading: String| -> String {
            let kept = |c: &char| c.is_alphanumeric() || matches!(c, '-' | '_' | ' ');
            heading.chars().filter(kept).map(|c| if c == ' ' { '-' } else { c }).collect()
        };
        headings.map(slug).collect()
    }
}

/// All Markdown files of the repository.
fn documents() -> Vec<Document> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() && !path.is_symlink() {
                if !matches!(name, "target" | "node_modules" | ".git") {
                    walk(&path, found);
                }
            } else if Path::new(name).extension().is_some_and(|e| e == "md") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(Path::new(ROOT), &mut found);
    found.sort();
    let documents: Vec<_> = found
        .iter()
        .map(|path| Document::open(path.strip_prefix(ROOT).unwrap().to_str().unwrap()))
        .collect();
    assert!(documents.len() > 20, "{} documents", documents.len());
    documents
}

fn contract() -> Value {
    serde_json::from_str(&fs::read_to_string(Path::new(ROOT).join("openapi.json")).unwrap())
        .unwrap()
}

/// The query parameters of `POST /caption/generate`.
fn parameters() -> BTreeSet<String> {
    parameters_of("/caption/generate")
}

fn parameters_of(path: &str) -> BTreeSet<String> {
    let contract = contract();
    let listed = contract["paths"][path]["post"]["parameters"].as_array().unwrap();
    let listed = listed.iter().filter(|parameter| parameter["in"] == "query");
    let names: BTreeSet<_> =
        listed.map(|parameter| parameter["name"].as_str().unwrap().to_owned()).collect();
    assert!(names.len() > 3, "{names:?}");
    names
}

fn cutline(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_cutline"))
        .args(arguments)
        .current_dir(ROOT)
        .env_remove("MODEL")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_captions_shown_are_the_programs_own() {
    let readme = Document::open("README.md");
    let photos = ["astronaut", "cat", "coffee", "rocket"].map(|p| format!("assets/{p}.jpg"));
    let mut arguments = vec!["caption"];
    arguments.extend(photos.iter().map(String::as_str));
    let printed = cutline(&arguments);
    assert_eq!(readme.block("cutline caption assets/*.jpg", "text"), printed);

    // The same caption is below the picture, in its alternative text, and in curl's answer.
    let cat = printed.lines().find_map(|line| line.strip_prefix("assets/cat.jpg\t")).unwrap();
    assert!(readme.text.contains(&format!("alt=\"{cat}\"")), "alt text of the picture");
    assert!(readme.text.contains(&format!("<em>{cat}</em>")), "caption below the picture");

    let json = cutline(&["caption", "--format", "jsonl", "assets/cat.jpg"]);
    let now: Value = serde_json::from_str(&json).unwrap();
    let quick_start = Document::open("docs/quick-start.md");
    for (document, whole) in [(&readme, false), (&quick_start, true)] {
        let name = &document.name;
        let answer: Value =
            serde_json::from_str(document.block("-F image=@assets/cat.jpg", "json")).unwrap();
        for field in ["caption", "model", "cache", "vision_cache"] {
            assert_eq!(answer[field], now[field], "{field} in the answer in {name}");
        }
        let (shown, printed) = (&answer["captions"][0], &now["captions"][0]);
        for field in ["text", "tokens", "finish_reason"] {
            assert_eq!(shown[field], printed[field], "{field} in the answer in {name}");
        }
        // Other processors have other kernels, and round differently.
        let confidence = |choice: &Value| choice["confidence"].as_f64().unwrap();
        assert!((confidence(shown) - confidence(printed)).abs() < 0.02);
        if whole {
            assert_eq!(answer["image"], now["image"]);
            same_appearance(&answer, &now);
            let fields = |value: &Value| value.as_object().unwrap().keys().cloned().collect();
            let shown: BTreeSet<String> = fields(&answer);
            let mut printed: BTreeSet<String> = fields(&now);
            // These two are the command line's own.
            assert!(printed.remove("path") && printed.remove("file"));
            assert_eq!(shown, printed);
        }
    }
}

#[tokio::test]
async fn the_description_of_the_coffee_is_the_programs_own() {
    let api = Document::open("docs/api.md");
    let shown: Value =
        serde_json::from_str(api.block("-F image=@assets/coffee.jpg", "json")).unwrap();
    let path = Path::new(ROOT).join("assets/coffee.jpg");
    let decoders = Decoders::new(DecodeLimits::default(), 1, Budget::new(1 << 30));
    let printed = decoders.process(fs::read(path).unwrap()).await.unwrap();
    let printed = serde_json::to_value(printed).unwrap();
    assert!(shown.as_object().unwrap().keys().eq(printed.as_object().unwrap().keys()));
    assert_eq!(shown["image"], printed["image"]);
    same_appearance(&shown, &printed);
    for name in ["brightness", "contrast", "sharpness", "colorfulness"] {
        let [one, two] = [&shown, &printed].map(|answer| answer[name].as_f64().unwrap());
        assert!((one - two).abs() <= 0.01 * one, "{name}: {one} and {two}");
    }
}

/// The problem that is shown is the one for a file that is not an image, in the contract's words.
#[test]
fn the_error_shown_is_the_programs_own() {
    let api = Document::open("docs/api.md");
    let shown: Value = serde_json::from_str(api.block("-F image=@README.md", "json")).unwrap();
    let error = ImageFormat::of(Document::open("README.md").text.as_bytes()).unwrap_err();
    assert_eq!(shown["detail"], error.detail());
    let mut problems = Vec::new();
    find_problems(&contract(), &mut problems);
    let same = problems.iter().find(|problem| problem["code"] == shown["code"]).unwrap();
    for field in ["type", "title", "status"] {
        assert_eq!(shown[field], same[field], "{field} of the problem");
    }
}

/// Colours and mood agree, except for differences in rounding between processors.
fn same_appearance(shown: &Value, printed: &Value) {
    let colors = |answer: &Value| answer["colors"].as_array().unwrap().clone();
    let number = |value: &Value| value.as_f64().unwrap();
    assert_eq!(colors(shown).len(), colors(printed).len());
    for (one, two) in colors(shown).iter().zip(&colors(printed)) {
        assert_eq!(one["name"], two["name"]);
        let [red, green, blue] = [0, 1, 2].map(|channel| one["rgb"][channel].as_u64().unwrap());
        assert_eq!(one["hex"], format!("#{red:02x}{green:02x}{blue:02x}"));
        for channel in 0..3 {
            assert!((number(&one["rgb"][channel]) - number(&two["rgb"][channel])).abs() <= 2.0);
        }
        assert!((number(&one["fraction"]) - number(&two["fraction"])).abs() < 0.01);
    }
    let (one, two) = (shown["mood"].as_object().unwrap(), printed["mood"].as_object().unwrap());
    assert!(one.keys().eq(two.keys()) && one["label"] == two["label"], "{one:?} {two:?}");
    for (name, value) in one.iter().filter(|(name, _)| *name != "label") {
        assert!((number(value) - number(&two[name])).abs() < 0.02, "{name} of the mood");
    }
}

/// The words of a line of shell, up to a pipe, a redirection or a comment.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    for c in line.chars().chain([' ']) {
        match (c, quote) {
            ('\'' | '"', None) => quote = Some(c),
            (c, Some(open)) if c == open => quote = None,
            (' ' | '\n', None) if word.is_empty() => {}
            (' ' | '\n', None) => words.push(std::mem::take(&mut word)),
            (c, _) => word.push(c),
        }
    }
    let end = words.iter().position(|word| matches!(&word[..1], "#" | "|" | ">" | "<"));
    words.truncate(end.unwrap_or(words.len()));
    words
}

#[test]
fn every_command_shown_is_one() {
    let mut seen = 0;
    for document in documents() {
        for line in document.fenced("sh") {
            let line = line.replace("cargo run --release -- ", "cutline ");
            let Some(at) = line.find("cutline ").filter(|at| line[..*at].trim_end().is_empty())
            else {
                continue;
            };
            let parsed = cutline::cli::command().try_get_matches_from(words(&line[at..]));
            assert!(parsed.is_ok(), "{}: {line}{}", document.name, parsed.unwrap_err());
            seen += 1;
        }
    }
    assert!(seen > 20, "{seen} commands");
}

/// Whether `path` is that of an endpoint, whose `{…}` stand for any word, or begins it: clients append the
/// rest to an address.
fn leads_to(path: &str, endpoint: &str) -> bool {
    let mut words = endpoint.split('/');
    path.split('/').all(|part| {
        words.next().is_some_and(|word| word == part || word.starts_with('{') || part.is_empty())
    })
}

#[test]
fn every_address_and_form_field_shown_is_one() {
    let contract = contract();
    let mut fields = parameters();
    for path in ["/tags/generate", "/image-text/score", "/vqa"] {
        fields.extend(parameters_of(path));
    }
    fields.extend(["image", "images"].map(str::to_owned));
    for document in documents() {
        for rest in document.text.split(SERVER).skip(1) {
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && !"/._-".contains(c));
            let path = rest[..end.unwrap_or(rest.len())].trim_end_matches('.');
            let known = contract["paths"].as_object().unwrap().keys().any(|p| leads_to(path, p));
            assert!(known, "{}: there is no {path:?}", document.name);
        }
        for line in document.fenced("sh").iter().filter(|line| line.contains("curl ")) {
            for form in words(line).windows(2).filter(|pair| pair[0] == "-F") {
                let field = form[1].split('=').next().unwrap();
                assert!(fields.contains(field), "{}: {line}", document.name);
            }
        }
    }
}

#[test]
fn every_link_leads_somewhere() {
    let (mut seen, mut broken) = (0, Vec::new());
    for document in documents() {
        for link in document.links() {
            if link.starts_with("http://") || link.starts_with("https://") {
                continue;
            }
            let (target, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let path = match target {
                "" => document.path.clone(),
                _ => document.path.parent().unwrap().join(target),
            };
            let name = path.to_str().unwrap();
            let there = path.exists()
                && (anchor.is_empty() || Document::open(name).anchors().contains(anchor));
            if !there {
                broken.push(format!("{}: {link}", document.name));
            }
            seen += 1;
        }
    }
    assert_eq!(broken, [""; 0], "these links lead nowhere");
    assert!(seen > 60, "{seen} links");
}

/// Paths in code spans exist, so the documents follow when files move.
#[test]
fn every_path_named_exists() {
    const FOLDERS: [&str; 11] = [
        "src/",
        "crates/",
        "tests/",
        "benches/",
        "docs/",
        "deploy/",
        "models/",
        "assets/",
        "examples/",
        ".ci/",
        ".github/",
    ];
    let (mut seen, mut missing) = (0, Vec::new());
    for document in documents().iter().filter(|document| document.name != "CHANGELOG.md") {
        for span in document.code_spans() {
            let path = span.split([' ', ':']).next().unwrap();
            let plain = path.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
            if plain && FOLDERS.iter().any(|folder| path.starts_with(folder)) {
                seen += 1;
                if !Path::new(ROOT).join(path).exists() {
                    missing.push(format!("{}: {path}", document.name));
                }
            }
        }
    }
    assert_eq!(missing, [""; 0], "these paths do not exist");
    assert!(seen > 60, "{seen} paths");
}

#[test]
fn the_entry_documents_stay_short() {
    for (name, kilobytes) in [("README.md", 8), ("ARCHITECTURE.md", 12)] {
        let bytes = Document::open(name).text.len();
        assert!(bytes <= kilobytes * 1024, "{name} has {bytes} bytes: move details to docs/");
    }
}

#[test]
fn every_setting_is_documented() {
    let configuration = Document::open("docs/configuration.md");
    let example = fs::read_to_string(Path::new(ROOT).join(".env.example")).unwrap();
    let names = example.lines().filter_map(|line| line.strip_prefix('#')?.split_once('='));
    let names: Vec<&str> = names.map(|(name, _)| name).filter(|name| !name.contains(' ')).collect();
    assert!(names.len() > 30, "{names:?}");
    for name in names {
        let row = format!("`{name}`");
        assert!(configuration.text.contains(&row), "docs/configuration.md lacks {name}");
    }
}

#[test]
fn every_parameter_endpoint_and_error_code_is_documented() {
    let api = Document::open("docs/api.md");
    for name in parameters() {
        assert!(api.text.contains(&format!("| `{name}` |")), "docs/api.md lacks {name}");
    }
    let contract = contract();
    for path in contract["paths"].as_object().unwrap().keys() {
        let named = api.code_spans().iter().any(|span| span.ends_with(path.as_str()));
        assert!(named, "docs/api.md lacks {path}");
    }
    let mut problems = Vec::new();
    find_problems(&contract, &mut problems);
    let codes: BTreeSet<&str> =
        problems.iter().map(|problem| problem["code"].as_str().unwrap()).collect();
    assert!(codes.len() > 10, "{codes:?}");
    let documented = api.code_spans();
    for code in codes {
        assert!(documented.iter().any(|span| span == code), "docs/api.md lacks the error {code}");
    }
}

/// Collects the problems that are examples in the contract.
fn find_problems(value: &Value, problems: &mut Vec<Value>) {
    if value["code"].is_string() && value["status"].is_u64() {
        problems.push(value.clone());
    }
    match value {
        Value::Object(fields) => fields.values().for_each(|value| find_problems(value, problems)),
        Value::Array(values) => values.iter().for_each(|value| find_problems(value, problems)),
        _ => {}
    }
}
