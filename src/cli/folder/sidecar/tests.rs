use super::*;
use crate::captioner::{CacheState, Caption, Choice, ImageInfo, Timings, TokenSequence};
use crate::cli::folder::record::Description;
use crate::generate::FinishReason;

fn description(text: &str) -> Description {
    Description::Caption(Box::new(Caption {
        digest: String::new(),
        caption: text.into(),
        captions: vec![Choice {
            text: text.into(),
            confidence: 0.5,
            tokens: 3,
            finish_reason: FinishReason::Stop,
            matching: None,
            sequence: TokenSequence::default(),
        }],
        fallback: None,
        template: None,
        experiment: None,
        model: "small".into(),
        cache: CacheState::Miss,
        vision_cache: None,
        image: ImageInfo {
            hash: "blake3:0".into(),
            format: "jpeg".into(),
            width: 1,
            height: 1,
            size_bytes: 5,
        },
        colors: None,
        timings: Timings::default(),
        routing: None,
        batch_size: None,
        appearance: None,
    }))
}

/// Photos in a folder.
struct Album {
    folder: tempfile::TempDir,
    photos: Vec<InputPhoto>,
}

impl Album {
    fn new(names: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let photo = |name: &&str| {
            let path = folder.path().join(name);
            fs::write(&path, name).unwrap();
            InputPhoto { path, content: None }
        };
        let photos = names.iter().map(photo).collect();
        Self { folder, photos }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    fn sidecars(&self, kind: SidecarKind, naming: SidecarName) -> Sidecars {
        Sidecars::new(kind, naming, &self.photos)
    }

    fn write(&self, sidecars: &Sidecars, index: usize, text: &str, overwrite: bool) -> Result<()> {
        let photo = &self.photos[index].path;
        let stamp = FileStamp::of(photo, "abc");
        let description = description(text);
        let record = Record { path: photo, description: &description, stamp: stamp.as_ref() };
        sidecars.write(photo, &record, overwrite)
    }

    fn is_finished(&self, sidecars: &Sidecars, parameters: &str, mode: ResumeMode) -> Result<bool> {
        let photo = &self.photos[0].path;
        sidecars.is_finished(photo, FileStamp::of(photo, parameters).as_ref(), mode)
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path()).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Whether this file system stores marks.
    fn has_marks(&self) -> bool {
        crate::cli::folder::mark::is_supported_in(self.folder.path())
    }
}

const FULL: SidecarName = SidecarName::Full;

#[test]
fn each_kind_is_read_back_and_known_to_be_current() {
    let album = Album::new(&["a.jpg"]);
    for kind in SidecarKind::ALL {
        let sidecars = album.sidecars(kind, FULL);
        let is_current =
            |parameters| album.is_finished(&sidecars, parameters, ResumeMode::Resume).unwrap();
        assert!(!is_current("abc"));
        album.write(&sidecars, 0, "a cat & <b>", false).unwrap();
        assert_eq!(sidecars.read(&album.photos[0].path).unwrap().text, "a cat & <b>");
        assert!(is_current("abc"), "{kind:?}");
        // XMP does not tell what it was made from; text does, where there are marks.
        let knows = kind == SidecarKind::Json || kind == SidecarKind::Txt && album.has_marks();
        assert_eq!(is_current("other"), !knows, "{kind:?}");
        assert!(album.is_finished(&sidecars, "other", ResumeMode::OnlyMissing).unwrap());
        assert!(!album.is_finished(&sidecars, "abc", ResumeMode::Overwrite).unwrap());
    }
    let written = ["a.jpg", "a.jpg.json", "a.jpg.txt", "a.jpg.xmp"];
    assert_eq!(album.names(), written, "no temporary file is left");
}

#[test]
fn a_sidecar_of_ours_is_renewed() {
    let album = Album::new(&["a.jpg"]);
    for (kind, name) in [(SidecarKind::Json, "a.jpg.json"), (SidecarKind::Txt, "a.jpg.txt")] {
        if kind == SidecarKind::Txt && !album.has_marks() {
            continue;
        }
        let sidecars = album.sidecars(kind, FULL);
        album.write(&sidecars, 0, "a cat", false).unwrap();
        album.write(&sidecars, 0, "a dog", false).unwrap();
        assert!(album.text(name).contains("a dog"), "{name}");
    }
}

#[test]
fn what_somebody_else_wrote_stays_unless_it_is_to_be_overwritten() {
    let album = Album::new(&["a.jpg"]);
    let json = album.sidecars(SidecarKind::Json, FULL);
    album.write(&json, 0, "a cat", false).unwrap();
    let ours = album.text("a.jpg.json");
    let edited = ours.replacen("a cat", "my cat", 1);
    let edited_twice = ours.replace("a cat", "my cat");
    let extended = ours.replacen('{', "{\"rating\":5,", 1);
    // As it is where files have no marks.
    fs::remove_file(album.path("a.jpg.json")).unwrap();
    // Whether it holds a caption, so that the photo needs none.
    for (kind, content, described) in [
        (SidecarKind::Json, "{\"title\":\"a.jpg\",\"description\":\"Grandma\"}", false),
        (SidecarKind::Json, "my notes", false),
        (SidecarKind::Json, "[]", false),
        (SidecarKind::Json, "{\"caption\":\"mine\"}", true),
        (SidecarKind::Json, &edited, true),
        (SidecarKind::Json, &extended, true),
        (SidecarKind::Txt, "my words", true),
        (SidecarKind::Txt, "\u{feff}my words\r\n", true),
    ] {
        let sidecars = album.sidecars(kind, FULL);
        let path = album.path(&format!("a.jpg.{}", kind.extension()));
        fs::write(&path, content).unwrap();
        // Older than its photo.
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(std::time::UNIX_EPOCH).unwrap();
        for mode in [ResumeMode::Resume, ResumeMode::OnlyMissing] {
            let finished = album.is_finished(&sidecars, "abc", mode);
            assert_eq!(finished.ok(), described.then_some(true), "{content}");
        }
        let written = album.write(&sidecars, 0, "a dog", false);
        match written {
            Ok(()) => assert!(described, "{content}"),
            Err(error) => {
                assert!(!described && error.detail().contains("--overwrite"), "{error}")
            }
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), content);
        album.write(&sidecars, 0, "a dog", true).unwrap();
        assert!(fs::read_to_string(&path).unwrap().contains("a dog"), "{content}");
        fs::remove_file(path).unwrap();
    }
    // A file with nothing in it is filled; one of ours that was edited throughout has a mark.
    fs::write(album.path("a.jpg.txt"), " \n").unwrap();
    let txt = album.sidecars(SidecarKind::Txt, FULL);
    album.write(&txt, 0, "a cat", false).unwrap();
    assert_eq!(album.text("a.jpg.txt"), "a cat\n");
    if album.has_marks() {
        album.write(&json, 0, "a cat", false).unwrap();
        fs::write(album.path("a.jpg.json"), &edited_twice).unwrap();
        album.write(&json, 0, "a dog", false).unwrap();
        assert_eq!(album.text("a.jpg.json"), edited_twice);
    }
}

/// An XMP with these attributes.
fn xmp(attributes: &str) -> String {
    format!(
        "<rdf:RDF xmlns:rdf='http://www.w3.org/1999/02/22-rdf-syntax-ns#'>\
         <rdf:Description rdf:about='' {attributes}/></rdf:RDF>"
    )
}

#[test]
fn an_xmp_without_the_photos_extension_is_used_unless_it_may_be_of_another_file() {
    let names = ["a.jpg", "b.jpg", "b.png", "c.jpg", "d.jpg", "e.jpg", "f.jpg", "g.jpg"];
    let album = Album::new(&names);
    let photoshop = "xmlns:p='http://ns.adobe.com/photoshop/1.0/' p:SidecarForExtension";
    for (stem, content) in [
        ("a", xmp("")),
        ("b", xmp("")),
        ("c", xmp("")),
        ("d", xmp(&format!("{photoshop}='NEF'"))),
        ("e", xmp(&format!("{photoshop}='JPG'"))),
        ("f", "my notes".to_owned()),
        ("g", xmp("")),
    ] {
        fs::write(album.path(&format!("{stem}.xmp")), content).unwrap();
    }
    // Files that are no photos of the run, or no photos at all.
    for other in ["C.NEF", "g.mov", "a.txt", "a.jpg.json"] {
        fs::write(album.path(other), "x").unwrap();
    }
    let sidecars = album.sidecars(SidecarKind::Xmp, FULL);
    let name =
        |photo: &InputPhoto| sidecars.path(&photo.path).unwrap().file_name().unwrap().to_owned();
    assert_eq!(
        album.photos.iter().map(name).collect::<Vec<_>>(),
        [
            "a.xmp",
            "b.jpg.xmp",
            "b.png.xmp",
            "c.jpg.xmp",
            "d.jpg.xmp",
            "e.xmp",
            "f.jpg.xmp",
            "g.jpg.xmp",
        ]
    );
}

#[test]
fn short_names_are_refused_where_two_files_would_share_them() {
    let album = Album::new(&["a.jpg", "b.jpg", "B.png", "c.jpg", "d.txt"]);
    for other in ["c.webp", "a.npz", "a.mov"] {
        fs::write(album.path(other), "x").unwrap();
    }
    let txt = album.sidecars(SidecarKind::Txt, SidecarName::Stem);
    album.write(&txt, 0, "a cat", false).unwrap();
    assert_eq!(album.text("a.txt"), "a cat\n");
    for (index, part) in [(1, "B.png"), (2, "b.jpg"), (3, "c.webp"), (4, "photo itself")] {
        let error = album.write(&txt, index, "a cat", true).unwrap_err();
        assert!(error.detail().contains(part), "{error}");
    }
    assert_eq!(album.text("d.txt"), "d.txt");
    // The XMP of a film or a raw file is not that of the photo.
    let xmp = album.sidecars(SidecarKind::Xmp, SidecarName::Stem);
    assert!(album.write(&xmp, 0, "a cat", true).is_err());
}

#[test]
fn a_file_that_is_not_xmp_is_not_touched() {
    let album = Album::new(&["a.jpg"]);
    fs::write(album.path("a.jpg.xmp"), "my notes").unwrap();
    let sidecars = album.sidecars(SidecarKind::Xmp, FULL);
    for overwrite in [false, true] {
        let error = album.write(&sidecars, 0, "a cat", overwrite).unwrap_err();
        assert!(error.detail().contains("a.jpg.xmp"), "{error}");
    }
    assert!(album.is_finished(&sidecars, "abc", ResumeMode::Resume).is_err());
    assert_eq!(album.text("a.jpg.xmp"), "my notes");
}

#[test]
fn names_may_be_as_long_as_the_file_system_allows() {
    let longest = format!("{}.jpg", "a".repeat(247));
    let album = Album::new(&[&longest]);
    for kind in [SidecarKind::Txt, SidecarKind::Xmp] {
        let sidecars = album.sidecars(kind, FULL);
        album.write(&sidecars, 0, "a cat", false).unwrap();
        album.write(&sidecars, 0, "a dog", true).unwrap();
    }
    let error = album.write(&album.sidecars(SidecarKind::Json, FULL), 0, "x", false).unwrap_err();
    assert!(error.detail().contains("--sidecar-name stem"), "{error}");
    album.write(&album.sidecars(SidecarKind::Json, SidecarName::Stem), 0, "x", false).unwrap();
}

#[test]
fn the_output_and_photos_are_no_sidecars() {
    let album = Album::new(&["a.jpg", "a.jpg.json"]);
    let mut sidecars = album.sidecars(SidecarKind::Json, FULL);
    let error = album.write(&sidecars, 0, "a cat", true).unwrap_err();
    assert!(error.detail().contains("is a photo"), "{error}");
    fs::write(album.path("a.jpg.json.json"), "[\n]\n").unwrap();
    sidecars.reserve(&album.path("a.jpg.json.json"));
    assert!(album.write(&sidecars, 1, "a cat", true).is_err());
    assert_eq!(album.text("a.jpg.json"), "a.jpg.json");
}
