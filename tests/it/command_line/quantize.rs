//! Runs `cutline model quantize` as a user does.

#[cfg(feature = "embedded-model")]
use tempfile::TempDir;

#[cfg(feature = "embedded-model")]
use super::cutline;
use super::{assert_sentence, assert_status, run, text};

#[test]
fn misuse_exits_with_status_2_and_help_is_printed() {
    for arguments in [
        &["model", "quantize"][..],
        &["model", "quantize", "embedded", "out"],
        &["model", "quantize", "embedded", "--type", "q8_0"],
        &["model", "quantize", "embedded", "out", "--type", "q9_0"],
        &["model", "quantize", "embedded", "out", "--type", "q8_0", "--fast"],
    ] {
        assert_status(&run(arguments), 2);
    }
    let help = run(&["model", "quantize", "--help"]);
    assert_status(&help, 0);
    for part in ["Examples:", "q4_k", "--force", "f16"] {
        assert!(text(&help.stdout).contains(part), "{part} is not in the help");
    }
}

#[test]
fn a_missing_model_is_reported() {
    let output = run(&["model", "quantize", "./no-such-folder", "out", "--type", "q8_0"]);
    assert_sentence(&output, 1, &["no-such-folder"]);
    assert!(output.stdout.is_empty());
    let output = run(&["model", "quantize", "no such thing", "out", "--type", "q8_0"]);
    assert_sentence(&output, 2, &["no such thing"]);
}

#[cfg(feature = "embedded-model")]
fn caption(folder: &TempDir, model: &str) -> String {
    let output =
        cutline(folder, &["caption", "--model", model, &super::photo("cat")]).output().unwrap();
    assert_status(&output, 0);
    assert!(output.stderr.is_empty(), "{output:?}");
    let line = text(&output.stdout).to_owned();
    assert!(line.split(' ').count() > 3, "{line}");
    line
}

#[cfg(feature = "embedded-model")]
#[test]
fn the_embedded_model_with_8_bits_can_be_used_as_folder_and_as_file() {
    let folder = tempfile::tempdir().unwrap();
    let quantize = ["model", "quantize", "embedded", "small", "--type", "q8_0"];
    let output = cutline(&folder, &quantize).output().unwrap();
    assert_status(&output, 0);
    assert!(output.stderr.is_empty(), "{output:?}");
    let line = text(&output.stdout);
    assert_eq!(line.lines().count(), 1, "{line}");
    for part in ["model.gguf: q8_0, ", " q8_0, ", " f32)", " before, ", " after"] {
        assert!(line.contains(part), "{part} is not in {line}");
    }
    assert_eq!(caption(&folder, "./small"), caption(&folder, "small/model.gguf"));

    let again = cutline(&folder, &quantize).output().unwrap();
    assert_sentence(&again, 1, &["model.gguf", "--force"]);
    assert!(again.stdout.is_empty());
    assert_status(&cutline(&folder, &quantize).arg("--force").output().unwrap(), 0);
}

#[cfg(feature = "embedded-model")]
#[test]
fn matrices_that_cannot_have_4_bits_are_reported() {
    let folder = tempfile::tempdir().unwrap();
    let output = cutline(&folder, &["model", "quantize", "embedded", "s.gguf", "--type", "q4_k"])
        .output()
        .unwrap();
    assert_status(&output, 0);
    let line = text(&output.stdout);
    for part in ["s.gguf: q4_k, ", " q8_0, ", " q4_k, ", " f32)"] {
        assert!(line.contains(part), "{part} is not in {line}");
    }
    let notes = text(&output.stderr);
    let qkv = "q8_0 instead of q4_k, which needs rows in blocks of 256: 12 × \
               vision_model.encoder.layers.*.self_attn.qkv.weight";
    assert!(notes.lines().any(|line| line == qkv), "{notes}");
    assert!(!notes.contains("fc2"), "its rows fill the blocks: {notes}");
    caption(&folder, "s.gguf");
}
