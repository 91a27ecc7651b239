//! Runs the built program as a user does.

#[cfg(feature = "embedded-model")]
mod folders;
#[cfg(all(unix, feature = "embedded-model"))]
mod interrupted;
mod judged;
#[cfg(all(unix, feature = "embedded-model"))]
mod keys;
#[cfg(feature = "embedded-model")]
mod library;
#[cfg(all(target_os = "linux", feature = "embedded-model"))]
mod mcp;
#[cfg(all(target_os = "linux", feature = "embedded-model"))]
mod memory;
#[cfg(all(unix, feature = "embedded-model"))]
mod outputs;
mod prompts;
mod quantize;
#[cfg(all(unix, feature = "embedded-model"))]
mod reload;
#[cfg(all(unix, feature = "embedded-model"))]
mod server;
#[cfg(feature = "embedded-model")]
mod tags;
#[cfg(feature = "embedded-model")]
mod texts;
#[cfg(all(unix, feature = "embedded-model", feature = "otlp"))]
mod traces;
#[cfg(feature = "embedded-model")]
mod with_model;

use std::fs;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The program in an empty folder, without settings.
fn cutline(folder: &TempDir, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cutline"));
    command.args(arguments).current_dir(folder).env_clear().stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    cutline(&folder, arguments).output().unwrap()
}

fn photo(name: &str) -> String {
    format!("{ROOT}/assets/{name}.jpg")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[track_caller]
fn assert_status(output: &Output, status: i32) {
    assert_eq!(output.status.code(), Some(status), "{output:?}");
}

/// The program failed with exactly one line on standard error, which contains all of `parts`.
#[track_caller]
fn assert_sentence(output: &Output, status: i32, parts: &[&str]) {
    assert_status(output, status);
    let stderr = text(&output.stderr);
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    for part in parts {
        assert!(stderr.contains(part), "{part} is not in {stderr}");
    }
}

#[test]
fn help_and_version_are_printed() {
    for arguments in
        [&[][..], &["--help"], &["serve", "--help"], &["caption", "--help"], &["bench", "--help"]]
    {
        let output = run(arguments);
        assert_status(&output, 0);
        assert!(text(&output.stdout).contains("Examples:"), "{output:?}");
        assert!(output.stderr.is_empty());
    }
    // Without the line breaks for the width of the terminal.
    let words =
        |output: &Output| text(&output.stdout).split_whitespace().collect::<Vec<_>>().join(" ");
    let serve = words(&run(&["serve", "--help"]));
    for part in ["--port", "[env: PORT]", "[default: 8000]", "--model", "--log-level"] {
        assert!(serve.contains(part), "{part} is not in {serve}");
    }
    let caption = words(&run(&["caption", "--help"]));
    for part in ["--num-beams", "--prompt", "--format", "--precision", "--max-image-size"] {
        assert!(caption.contains(part), "{part} is not in {caption}");
    }
    // The descriptions of the commands are not those of the structs behind their options.
    let commands = words(&run(&["--help"]));
    for part in
        ["serve Serves captions over HTTP", "health Asks a running server", "check Reports how"]
    {
        assert!(commands.contains(part), "{part} is not in {commands}");
    }
    let version = run(&["--version"]);
    assert_eq!(text(&version.stdout), format!("cutline {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn completions_and_manual_pages_cover_the_commands() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let output = run(&["completions", shell]);
        assert_status(&output, 0);
        for part in ["caption", "num-beams", "only-missing"] {
            assert!(text(&output.stdout).contains(part), "{part} is not for {shell}");
        }
    }
    let page = run(&["man"]);
    assert_status(&page, 0);
    assert!(text(&page.stdout).contains(".TH cutline 1") && text(&page.stdout).contains("check"));
    let folder = tempfile::tempdir().unwrap();
    assert_status(&cutline(&folder, &["man", "--dir", "."]).output().unwrap(), 0);
    for page in ["cutline.1", "cutline-caption.1", "cutline-eval.1", "cutline-model-quantize.1"] {
        let page = std::fs::read_to_string(folder.path().join(page)).unwrap();
        assert!(page.contains("Examples:"), "{page}");
    }
    assert_sentence(&run(&["man", "--dir", "no/such"]), 1, &["no/such", "folder"]);
    assert_status(&run(&["completions", "tcsh"]), 2);
}

#[test]
fn the_short_help_fits_a_screen() {
    let help = run(&["caption", "-h"]);
    assert_status(&help, 0);
    let lines = text(&help.stdout).lines().count();
    assert!(lines <= 60 && text(&help.stdout).contains("Examples:"), "{lines} lines");
    assert!(!text(&help.stdout).contains("--precision"));
}

#[test]
fn misuse_exits_with_status_2() {
    for arguments in [
        &["nonsense"][..],
        &["caption"],
        &["caption", "a.jpg", "--format", "xml"],
        &["caption", "a.jpg", "--beams", "3"],
        &["caption", "a.jpg", "--overwrite"],
        &["caption", "a.jpg", "--stdin-image"],
        &["caption", "a.jpg", "-o", "x.jsonl", "--resume", "--overwrite"],
        &["caption", "a.jpg", "--sidecar", "exif"],
        &["serve", "extra"],
        &["model"],
    ] {
        let output = run(arguments);
        assert_status(&output, 2);
        assert!(!output.stderr.is_empty(), "{output:?}");
    }
    let cat = photo("cat");
    for (arguments, parts) in [
        (&["caption", &cat, "--num-beams", "99"][..], ["--num-beams", "10"]),
        (&["caption", &cat, "--top-p", "high"], ["--top-p", "number"]),
        (&["caption", &cat, "--num-captions", "2"], ["--num-captions", "do_sample"]),
        (&["caption", &cat, "--max-workers", "0"], ["MAX_WORKERS", "command line"]),
        (&["caption", &cat, "--max-chars", "80"], ["--max-chars", "alt_text"]),
        (&["caption", &cat, "--capital"], ["--style", "alt_text"]),
        (&["caption", "-", "-"], ["-", "twice"]),
        (&["caption", &cat, "--precision", "fp8"], ["PRECISION", "int8"]),
        (&["serve", "--port", "abc"], ["PORT", "65535"]),
        (&["serve", "--max-batch-size", "0"], ["MAX_BATCH_SIZE", "1"]),
    ] {
        assert_sentence(&run(arguments), 2, &parts);
    }
}

/// A minimal model: random weights, as transformers' `save_pretrained` writes them.
fn bare_model() -> String {
    format!("{ROOT}/tests/goldens/tied")
}

#[test]
fn bench_needs_no_tokenizer_and_prints_one_line() {
    let model = bare_model();
    let output = run(&[
        "bench",
        "--model",
        &model,
        "--precision=f32",
        "--batch=3",
        "--new-tokens=4",
        "--iterations=2",
    ]);
    assert_status(&output, 0);
    assert!(output.stderr.is_empty(), "{output:?}");
    assert_eq!(text(&output.stdout).lines().count(), 1);
    let line: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let keys: Vec<&String> = line.as_object().unwrap().keys().collect();
    let times = ["vision_ms", "cross_kv_ms", "decode_ms", "end_to_end_ms", "images_per_second"];
    assert_eq!(keys[..5], ["model", "precision", "kernels", "threads", "batch"]);
    assert_eq!(keys[5..10], times);
    assert_eq!(keys[10..], ["device"], "and gpu, where there is one");
    assert_eq!(line["device"], "cpu");
    assert_eq!((&line["model"], &line["batch"]), (&"tied".into(), &3.into()));
    assert_eq!(line["precision"], "f32");
    let time = |key: &str| line[key].as_f64().unwrap();
    assert!(times.iter().all(|key| time(key) > 0.0), "{line}");
    let stages: f64 = times[..3].iter().map(|key| time(key)).sum();
    assert!(stages <= 2.0 * time("end_to_end_ms"), "{line}");
}

#[test]
fn bench_writes_the_states_of_the_vision_tower() {
    let folder = tempfile::tempdir().unwrap();
    let model = bare_model();
    let states = |kernels: &str| {
        let path = folder.path().join(kernels);
        let output = run(&[
            "bench",
            "--model",
            &model,
            "--precision=f32",
            "--iterations=1",
            &format!("--cpu-kernels={kernels}"),
            &format!("--states={}", path.display()),
        ]);
        assert_status(&output, 0);
        let bytes = fs::read(path).unwrap();
        let (numbers, rest) = bytes.as_chunks::<4>();
        assert!(rest.is_empty());
        numbers.iter().map(|number| f32::from_le_bytes(*number)).collect::<Vec<_>>()
    };
    let (kernels, candle) = (states("portable"), states("candle"));
    assert!(kernels.len() > 100 && kernels.len() == candle.len());
    let difference = kernels.iter().zip(&candle).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(difference < 1e-4, "{difference}");
    assert!(kernels.iter().any(|&number| number != kernels[0]));
    let nowhere = folder.path().join("none/states").display().to_string();
    let output = run(&["bench", "--model", &model, "--iterations=1", "--states", &nowhere]);
    assert_sentence(&output, 1, &["none/states", "another file"]);
}

#[test]
fn bench_refuses_impossible_workloads() {
    let model = bare_model();
    let output = run(&["bench", "--model", &model, "--new-tokens", "32"]);
    assert_sentence(&output, 2, &["new_tokens", "1 to 31"]);
    assert_status(&run(&["bench", "--model", &model, "--batch", "0"]), 2);
    assert_sentence(&run(&["caption", &photo("cat"), "--model", &model]), 1, &["tokenizer"]);
}

#[test]
fn settings_are_read_from_the_environment_and_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let from_environment = cutline(&folder, &["serve"]).env("PORT", "abc").output().unwrap();
    assert_sentence(&from_environment, 2, &["PORT=abc", "environment"]);
    // Written by an editor of Windows, and shared with other programs.
    let settings = "\u{feff}export DATABASE='x\r\nDEBUG_LEVEL: 3\r\nexport MAX_BATCH_SIZE=0\r\n";
    fs::write(folder.path().join(".env"), settings).unwrap();
    let from_file = cutline(&folder, &["serve"]).output().unwrap();
    assert_sentence(&from_file, 2, &["MAX_BATCH_SIZE=0", "from .env, line 3"]);
    fs::write(folder.path().join(".env"), "A=1\nMODEL=gpt-4o\n").unwrap();
    let output = cutline(&folder, &["serve", "--port=0"]).output().unwrap();
    assert_sentence(&output, 2, &["MODEL=gpt-4o (from .env, line 2)", "organisation/name"]);
    fs::write(folder.path().join(".env"), "PORT=1\nHF_TOKEN hf_secret\n").unwrap();
    let output = cutline(&folder, &["health"]).output().unwrap();
    assert_sentence(&output, 2, &[".env, line 2: HF_TOKEN", "NAME=value"]);
    assert!(!text(&output.stderr).contains("hf_secret"));
    let wide: Vec<u8> = "PORT=1\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    fs::write(folder.path().join(".env"), wide).unwrap();
    let output = cutline(&folder, &["serve"]).output().unwrap();
    assert_sentence(&output, 2, &[".env is UTF-16", "save it as UTF-8"]);
    // Python's environments are folders of this name.
    fs::remove_file(folder.path().join(".env")).unwrap();
    fs::create_dir(folder.path().join(".env")).unwrap();
    let output = cutline(&folder, &["serve", "--port=x"]).output().unwrap();
    assert_sentence(&output, 2, &["PORT=x"]);
}

#[test]
fn only_the_server_obeys_the_folder_it_is_started_in() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(".env"), "MODEL=./bad\nMAX_WORKERS=0\nPORT=x y\n").unwrap();
    let model = bare_model();
    for command in [
        &["caption", "x.jpg", "--model=./mine"][..],
        &["model", "info", "./mine"],
        &["bench", "--model=./mine"],
        &["model", "quantize", "./mine", "out", "--type=q8_0"],
    ] {
        let output = cutline(&folder, command).output().unwrap();
        assert_sentence(&output, 1, &["there is no folder ./mine"]);
        let file = [command, &["--env-file", "settings"]].concat();
        assert_sentence(
            &cutline(&folder, &file).output().unwrap(),
            2,
            &["settings cannot be read"],
        );
    }
    fs::write(folder.path().join("settings"), format!("MODEL={model}\nMAX_WORKERS=0\n")).unwrap();
    let output = cutline(&folder, &["model", "info", "--env-file=settings"]).output().unwrap();
    assert_sentence(&output, 2, &["MAX_WORKERS=0 (from settings, line 2)"]);
    // The model of the tests has no tokenizer, so this one was opened.
    let command = ["model", "info", "--env-file=settings", "--max-workers=1"];
    assert_sentence(&cutline(&folder, &command).output().unwrap(), 1, &["tokenizer"]);
    let output = cutline(&folder, &["serve", "--env-file", "none"]).output().unwrap();
    assert_sentence(&output, 2, &["none cannot be read"]);
}

/// A named pipe without a writer.
#[cfg(unix)]
#[test]
fn a_pipe_in_the_place_of_settings_does_not_hang() {
    let folder = tempfile::tempdir().unwrap();
    let made = Command::new("mkfifo").arg(folder.path().join(".env")).status().unwrap();
    assert!(made.success());
    let output = cutline(&folder, &["serve"]).output().unwrap();
    assert_sentence(&output, 2, &[".env is not a regular file"]);
}

#[test]
fn a_missing_model_exits_with_status_1() {
    let output = run(&["caption", &photo("cat"), "--model", "./no-such-folder"]);
    assert_sentence(&output, 1, &["no-such-folder"]);
    assert!(output.stdout.is_empty());
    let output = run(&["serve", "--port", "0", "--model", "./no-such-folder"]);
    assert_sentence(&output, 1, &["no-such-folder"]);
}

#[test]
fn a_port_in_use_is_reported() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let output = run(&["serve", "--port", &port]);
    assert_sentence(&output, 1, &["PORT", &port]);
    let output = run(&["serve", "--host", "192.0.2.1", "--port", "0"]);
    assert_sentence(&output, 2, &["HOST=192.0.2.1"]);
}
