use std::fs;

use super::*;

fn tree(files: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in files {
        let path = folder.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
    }
    folder
}

fn find(folder: &tempfile::TempDir, arguments: &[&str], recursive: bool) -> Inputs {
    find_with(folder, arguments, Search { recursive, follow_links: false })
}

fn find_with(folder: &tempfile::TempDir, arguments: &[&str], search: Search) -> Inputs {
    let arguments: Vec<PathBuf> =
        arguments.iter().map(|argument| folder.path().join(argument)).collect();
    Inputs::find(&arguments, search).unwrap()
}

fn names(inputs: &Inputs, folder: &tempfile::TempDir) -> Vec<String> {
    let short = |photo: &InputPhoto| {
        photo.path.strip_prefix(folder.path()).unwrap().to_str().unwrap().to_owned()
    };
    inputs.photos.iter().map(short).collect()
}

#[test]
fn photos_of_a_folder_are_sorted_and_other_files_are_counted() {
    let folder = tree(&["b.JPG", "a.png", "c.txt", ".d.jpg", "e/f.webp", "e/.g/h.jpg", ".i/j.jpg"]);
    #[cfg(unix)]
    std::os::unix::fs::symlink(folder.path().join("a.png"), folder.path().join("k.png")).unwrap();
    let flat = find(&folder, &[""], false);
    assert_eq!(names(&flat, &folder), ["a.png", "b.JPG"]);
    assert_eq!((flat.skipped(SkipReason::Hidden), flat.skipped(SkipReason::UnknownFormat)), (2, 1));
    assert_eq!((flat.skipped(SkipReason::Folder), flat.problems.len()), (1, 0));
    #[cfg(unix)]
    assert_eq!(flat.skipped(SkipReason::Link), 1);
    let deep = find(&folder, &[""], true);
    assert_eq!(names(&deep, &folder), ["a.png", "b.JPG", "e/f.webp"]);
    assert_eq!((deep.skipped(SkipReason::Hidden), deep.skipped(SkipReason::Folder)), (3, 0));
}

#[test]
fn named_files_are_always_taken_and_found_files_once() {
    let folder = tree(&["a.jpg", "b.dat", ".c.jpg"]);
    let named = find(&folder, &["b.dat", ".c.jpg", "none.jpg", "a.jpg", "a.jpg"], false);
    assert_eq!(names(&named, &folder), ["b.dat", ".c.jpg", "none.jpg", "a.jpg", "a.jpg"]);
    let found = find(&folder, &["a.jpg", "", "*.jpg"], false);
    assert_eq!(names(&found, &folder), ["a.jpg"]);
}

#[test]
fn patterns_match_as_in_a_shell_and_no_match_is_a_problem() {
    let folder = tree(&["a/1.jpg", "a/2.png", "b/3.jpg", "[4].jpg"]);
    let inputs = find(&folder, &["*/*.jpg"], false);
    assert_eq!(names(&inputs, &folder), ["a/1.jpg", "b/3.jpg"]);
    let inputs = find(&folder, &["**/*.png", "[4].jpg", "*.gif"], false);
    assert_eq!(names(&inputs, &folder), ["a/2.png", "[4].jpg"]);
    assert_eq!(inputs.problems.len(), 1);
    assert!(inputs.problems[0].contains("*.gif"), "{:?}", inputs.problems);
}

#[test]
fn photos_that_cannot_be_read_are_counted_apart() {
    let folder = tree(&["a.jpg", "b.HEIC", "c.heic", "d.NEF", "e.txt", "f/g.dng"]);
    let flat = find(&folder, &["", "*.heic"], false);
    assert_eq!(names(&flat, &folder), ["a.jpg"]);
    let sentence = flat.unreadable().unwrap();
    assert!(
        sentence.starts_with("4 photos ") && sentence.contains("(3 HEIC, 1 NEF)"),
        "{sentence}"
    );
    assert!(flat.incomplete());
    assert_eq!(flat.skipped_summary(), "1 of unknown format, 1 folders");
    // One that is named is tried, whatever its name is.
    let named = find(&folder, &["b.HEIC"], false);
    assert_eq!((names(&named, &folder).len(), named.unreadable()), (1, None));
    assert!(!find(&folder, &["a.jpg", "e.txt"], false).incomplete());
}

#[cfg(unix)]
fn link(folder: &tempfile::TempDir, target: &str, name: &str) {
    std::os::unix::fs::symlink(target, folder.path().join(name)).unwrap();
}

#[cfg(unix)]
const FOLLOWING: Search = Search { recursive: true, follow_links: true };

#[cfg(unix)]
#[test]
fn links_are_followed_on_request_and_each_folder_is_searched_once() {
    let folder = tree(&["album/a.jpg", "album/b/c.jpg", "outside/d.jpg", "outside/e.txt"]);
    for (target, name) in [
        ("..", "album/up"),
        ("b", "album/again"),
        ("loop", "album/loop"),
        ("../outside", "album/z"),
        ("../outside", "album/y"),
        ("../outside/e.txt", "album/text.jpg"),
        ("nowhere.jpg", "album/gone.jpg"),
        ("/dev/zero", "album/device.jpg"),
    ] {
        link(&folder, target, name);
    }
    let kept = find(&folder, &["album"], true);
    assert_eq!(names(&kept, &folder), ["album/a.jpg", "album/b/c.jpg"]);
    assert_eq!(kept.skipped(SkipReason::Link), 8);

    let followed = find_with(&folder, &["album"], FOLLOWING);
    let photos = names(&followed, &folder);
    let own = ["album/a.jpg", "album/b/c.jpg", "album/gone.jpg", "album/text.jpg"];
    assert_eq!(photos[..4], own);
    assert_eq!(photos[4..], ["album/up/outside/d.jpg"], "it is reached once");
    assert_eq!(followed.skipped(SkipReason::LinkAgain), 3);
    assert_eq!(followed.skipped(SkipReason::Special), 1);
    let flat = Search { recursive: false, follow_links: true };
    let flat = find_with(&folder, &["album"], flat);
    assert_eq!(flat.skipped(SkipReason::Folder), 5);
    let pattern = find_with(&folder, &["album/*/d.jpg"], FOLLOWING);
    assert_eq!(names(&pattern, &folder).len(), 2);
}

/// Each folder has two links to the next: 2 to the power of 30 paths.
#[cfg(unix)]
#[test]
fn links_cannot_multiply_the_work() {
    let folder = tree(&["0/a.jpg", "30/z.jpg"]);
    for number in 0..30 {
        fs::create_dir_all(folder.path().join(number.to_string())).unwrap();
        for name in ["x", "y"] {
            link(&folder, &format!("../{}", number + 1), &format!("{number}/{name}"));
        }
    }
    let inputs = find_with(&folder, &["0"], FOLLOWING);
    assert_eq!(inputs.photos.len(), 2);
    assert_eq!(inputs.skipped(SkipReason::LinkAgain), 30);
}

#[cfg(unix)]
#[test]
fn links_in_a_list_are_meant() {
    let folder = tree(&[".git/annex/objects/SHA256E-s5--abc", "b.jpg", "notes.txt"]);
    link(&folder, ".git/annex/objects/SHA256E-s5--abc", "a.jpg");
    link(&folder, ".git/annex/objects/SHA256E-s5--gone", "gone.jpg");
    link(&folder, "notes.txt", "text");
    let mut inputs = Inputs::default();
    for name in ["a.jpg", "b.jpg", "gone.jpg", "text", "missing.jpg"] {
        inputs.listed(folder.path().join(name));
    }
    assert_eq!(names(&inputs, &folder), ["a.jpg", "b.jpg", "gone.jpg", "missing.jpg"]);
    assert_eq!(inputs.skipped(SkipReason::UnknownFormat), 1);
}

#[cfg(target_os = "linux")]
#[test]
fn names_that_are_not_utf_8_are_found() {
    use std::os::unix::ffi::OsStrExt;
    let folder = tree(&["b/c.jpg"]);
    let names = [&b"caf\xe9.jpg"[..], b"caf\xe8.jpg", b"b/\xff\xfe.png"];
    for name in names {
        fs::write(folder.path().join(OsStr::from_bytes(name)), "").unwrap();
    }
    for arguments in [&[""][..], &["*.jpg", "b/*"], &["**/*"]] {
        let found = find(&folder, arguments, true);
        assert_eq!((found.photos.len(), found.problems.len()), (4, 0), "{arguments:?}");
        for name in names {
            let path = folder.path().join(OsStr::from_bytes(name));
            assert!(found.photos.iter().any(|photo| photo.path == path), "{path:?}");
        }
    }
}

#[test]
fn lists_are_separated_by_line_breaks_or_nuls() {
    let list = |text: &str| paths(text.as_bytes()).collect::<Vec<_>>();
    assert_eq!(list("a b.jpg\r\n\nc.jpg"), [Path::new("a b.jpg"), Path::new("c.jpg")]);
    assert_eq!(list("a\nb.jpg\0c.jpg\0"), [Path::new("a\nb.jpg"), Path::new("c.jpg")]);
    assert!(list("").is_empty());
}
