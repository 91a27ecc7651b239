//! Files in the format of `.env`.
//!
//! Such a file may have been made for other programs as well: their lines are ignored, in whatever form
//! they are.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use crate::text;

/// A larger file is something else.
const MAX_BYTES: u64 = 1 << 20;

/// A setting in a file.
pub(super) struct FileEntry {
    /// The number of its line, from 1.
    pub(super) line: usize,
    pub(super) name: String,
    pub(super) text: String,
}

/// The entries of the file at `path` whose names `is_known` accepts. With `optional`, a file that does
/// not exist has none, and neither has a folder: Python keeps its environments in folders of this name.
///
/// # Errors
/// A sentence that names the file, and the line if one is at fault. It never quotes a line, which may
/// hold a secret.
pub(super) fn read(
    path: &Path,
    optional: bool,
    is_known: impl Fn(&str) -> bool,
) -> Result<Vec<FileEntry>, String> {
    let shown = path.display();
    let kind = path.metadata();
    if optional && kind.as_ref().map_or_else(is_missing, std::fs::Metadata::is_dir) {
        return Ok(Vec::new());
    }
    // Opening a named pipe waits for its writer. One that is named on purpose has a writer.
    if optional && kind.is_ok_and(|kind| !kind.is_file()) {
        return Err(format!("{shown} is not a regular file; give --env-file to read it anyway"));
    }
    let mut bytes = Vec::new();
    let opened = File::open(path);
    opened.and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes)).map_err(|error| {
        format!("{shown} cannot be read ({error}); correct the path or its permissions")
    })?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(format!("{shown} has more than {MAX_BYTES} bytes; give a file of settings"));
    }
    let bytes = text::without_mark(&bytes).map_err(|why| format!("{shown} {why}"))?;
    parse(bytes, is_known).map_err(|(line, name)| {
        format!("{shown}, line {line}: {name} is not set as NAME=value; correct or remove the line")
    })
}

fn is_missing(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

/// The entries with known names. An error is the number of a line that has a known name but cannot be
/// read, and the name.
fn parse(bytes: &[u8], is_known: impl Fn(&str) -> bool) -> Result<Vec<FileEntry>, (usize, String)> {
    let mut numbers = Vec::new();
    let mut lines = String::new();
    for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let entry = str::from_utf8(line).ok();
        // Alone, so that a line of another program, such as one with an apostrophe, ends where it ends.
        match entry.and_then(|line| dotenvy::from_read_iter(line.as_bytes()).next()) {
            Some(Ok(_)) => {
                numbers.push(index + 1);
                lines.extend([entry.unwrap_or_default(), "\n"]);
            }
            None if entry.is_some() => {}
            _ => {
                let name = name(line);
                if is_known(&name) {
                    return Err((index + 1, name));
                }
            }
        }
    }
    // Together, because one value may refer to another: A=${B}.
    let entries = dotenvy::from_read_iter(lines.as_bytes()).flatten().zip(numbers);
    let entries = entries.map(|((name, text), line)| FileEntry { line, name, text });
    Ok(entries.filter(|entry| is_known(&entry.name)).collect())
}

/// The name that a line begins with.
fn name(line: &[u8]) -> String {
    let line = String::from_utf8_lossy(line);
    let line = line.trim_start();
    let line = line.strip_prefix("export ").unwrap_or(line).trim_start();
    line.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(text: &[u8]) -> Result<Vec<(usize, String)>, (usize, String)> {
        let known = |name: &str| matches!(name, "PORT" | "MODEL" | "API_KEYS");
        let entries = parse(text, known)?.into_iter();
        Ok(entries.map(|entry| (entry.line, format!("{}={}", entry.name, entry.text))).collect())
    }

    #[test]
    fn lines_of_other_programs_do_not_matter() {
        let text = b"# caf\xe9\n\nMOTTO=it's mine\nPORT=1\r\nA B C\nexport\nNAME=\xff\n\
            my-var: 3\nKEY=-----BEGIN\nabc+/==\n\"unfinished\nROOT=/srv\nexport MODEL = \"${ROOT}/m\" # x\n\
            API_KEYS='a b'\nDEBUG=app:*\nMEMORY=$(free)\\x";
        let expected = [(4, "PORT=1"), (13, "MODEL=/srv/m"), (14, "API_KEYS=a b")];
        assert_eq!(entries(text).unwrap(), expected.map(|(line, text)| (line, text.to_owned())));
    }

    #[test]
    fn a_setting_that_cannot_be_read_is_named_with_its_line() {
        for line in
            ["PORT 8080", "PORT: 8080", "export PORT", "PORT=a b", "PORT='8080", "PORT=\"\\q\""]
        {
            let error = entries(format!("A=1\n\n{line}\n").as_bytes()).unwrap_err();
            assert_eq!(error, (3, "PORT".to_owned()), "{line}");
        }
        assert_eq!(entries(b"PORT=\xff").unwrap_err(), (1, "PORT".to_owned()));
    }
}
