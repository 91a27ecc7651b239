//! `cutline tags` as a user runs it, with the embedded model.

use std::fs;

use serde_json::Value;

use super::{assert_sentence, assert_status, cutline, photo, run, text};

#[test]
fn photos_are_tagged_with_allowed_words_in_the_order_of_the_files() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(
        folder.path().join("mine.txt"),
        "[animals]\ncat: kitten\ndog\nquokka\n[food]\npizza\n",
    )
    .unwrap();
    let (cat, coffee) = (photo("cat"), photo("coffee"));
    let output = cutline(&folder, &["tags", "--vocabulary", "mine.txt", &cat, "none.jpg", &coffee])
        .output()
        .unwrap();
    assert_status(&output, 1);
    let lines: Vec<&str> = text(&output.stdout).lines().collect();
    assert_eq!(lines[0], format!("{cat}\tcat"));
    assert!(lines[1].starts_with(&format!("{coffee}\t")) && lines.len() == 2, "{lines:?}");
    assert!(text(&output.stderr).starts_with("none.jpg: "), "{output:?}");

    let arguments = ["tags", "--vocabulary", "mine.txt", "--format", "jsonl", "--explain", &cat];
    let output = cutline(&folder, &arguments).output().unwrap();
    assert_status(&output, 0);
    let row: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(row["path"], cat.as_str());
    let tag = &row["tags"]["animals"][0];
    assert_eq!((&tag["tag"], &tag["support"]), (&"cat".into(), &"ok".into()), "{row}");
    assert!(tag["evidence"]["pmi"].as_f64().is_some_and(|pmi| pmi > 0.0), "{row}");
    assert_eq!(row["unsupported"], serde_json::json!(["quokka"]));
    assert_eq!((&row["violations"], &row["coverage"]["missing"][0]), (&0.into(), &"food".into()));
    assert!(row["decoder_steps"].as_u64().is_some_and(|steps| steps <= 2), "{row}");

    let output = run(&["tags", &cat]);
    assert_status(&output, 0);
    let (_, tags) = text(&output.stdout).trim_end().split_once('\t').unwrap();
    assert!(tags.split(", ").any(|tag| tag == "cat"), "everyday words: {tags}");
}

#[test]
fn vocabularies_are_checked_and_tags_are_measured() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    write("mine.json", r#"["cat", "dog", "quokka", "traffic light"]"#);
    let tags =
        |arguments: &[&str]| cutline(&folder, &[&["tags"], arguments].concat()).output().unwrap();
    let output = tags(&["check", "mine.json", "--json"]);
    assert_status(&output, 0);
    let rows: Vec<Value> =
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let support: Vec<&str> = rows.iter().map(|row| row["support"].as_str().unwrap()).collect();
    assert_eq!((support[0], support[2]), ("ok", "none"));
    assert_eq!(rows[3]["pieces"], serde_json::json!([2]));
    assert!(text(&tags(&["check"]).stdout).contains("7 categories"));

    let truth = format!(
        "{{\"path\": {:?}, \"tags\": {{\"tags\": [\"cat\"]}}}}\n{{\"path\": {:?}, \"captions\": [\"no \
         animals\"]}}\n",
        photo("cat"),
        photo("coffee")
    );
    write("truth.jsonl", &truth);
    let arguments = ["eval", "truth.jsonl", "--vocabulary", "mine.json"];
    let output = tags(&[&arguments[..], &["--json"]].concat());
    assert_status(&output, 0);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["photos"], &report["failed"]), (&2.into(), &0.into()));
    let hybrid = &report["strategies"]["hybrid"];
    assert_eq!((&hybrid["recall"], &hybrid["violations"]), (&1.0.into(), &0.into()), "{report}");
    assert!(report["most_decoder_steps"].as_u64().is_some_and(|steps| (1..=2).contains(&steps)));
    let output = tags(&arguments);
    assert!(text(&output.stdout).contains("precision at 1"), "{output:?}");

    assert_sentence(&tags(&["--vocabulary", "none.json", "a.jpg"]), 2, &["none.json", "path"]);
    write("bad.json", r#"["cat", "cat"]"#);
    assert_sentence(&tags(&["check", "bad.json"]), 2, &["bad.json", "given twice"]);
    write("truth.jsonl", "7\n");
    assert_sentence(&tags(&arguments), 2, &["truth.jsonl", "line 1"]);
    assert_sentence(&tags(&["--strategy", "similarity", &photo("cat")]), 1, &["LIBRARY"]);
    fs::create_dir(folder.path().join("empty")).unwrap();
    assert_sentence(&tags(&["empty"]), 3, &["no photos"]);
}

#[test]
fn a_library_keeps_vocabularies() {
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let mut command = cutline(&folder, &[&["tags"], arguments].concat());
        command.env("LIBRARY", "sqlite:photos.db").output().unwrap()
    };
    let printed = |arguments: &[&str]| {
        let output = run(arguments);
        assert_status(&output, 0);
        text(&output.stdout).to_owned()
    };
    let write = |text: &str| fs::write(folder.path().join("shop.txt"), text).unwrap();
    assert_sentence(&run(&["vocabulary", "list"]), 2, &["no library"]);
    write("[animals]\nquokka\ncat: kitten");
    let add = ["vocabulary", "add", "shop", "shop.txt", "-m", "cats"];
    assert_eq!(printed(&add), "library:shop:1\n");
    assert_eq!(printed(&add), "library:shop:1\n", "the same again");
    write("pizza");
    assert_eq!(printed(&["vocabulary", "add", "shop", "shop.txt"]), "library:shop:2\n");
    assert_eq!(printed(&["vocabulary", "list"]), "shop\t2\t2\n");
    printed(&["vocabulary", "use", "shop", "1"]);
    assert_eq!(printed(&["vocabulary", "show", "shop"]), "2\t\t\n1\tcounts\tcats\n");
    let said: Value = serde_json::from_str(&printed(&["vocabulary", "print", "shop"])).unwrap();
    assert_eq!(said["categories"][0]["tags"][1]["synonyms"][0], "kitten");
    let checked = printed(&["check", "library:shop"]);
    assert!(checked.contains("animals: cat (1, 1)"), "{checked}");
    let cat = photo("cat");
    let row = printed(&["--vocabulary", "library:shop", "--format", "jsonl", &cat]);
    let row: Value = serde_json::from_str(&row).unwrap();
    assert_eq!(row["vocabulary"], "library:shop:1");
    assert_eq!(row["tags"]["animals"][0]["tag"], "cat");
    let set = cutline(&folder, &["tags", "check"])
        .env("LIBRARY", "sqlite:photos.db")
        .env("TAG_VOCABULARY", "library:shop:2")
        .output()
        .unwrap();
    assert_status(&set, 0);
    assert!(text(&set.stdout).contains("pizza"), "{set:?}");
    let missing = run(&["--vocabulary", "library:shop:3", &cat]);
    assert_sentence(&missing, 1, &["shop", "no version 3"]);
    printed(&["vocabulary", "delete", "shop"]);
    assert_eq!(printed(&["vocabulary", "list"]), "");
    assert_sentence(&run(&["check", "library:shop"]), 1, &["no vocabulary shop"]);
    let alone = cutline(&folder, &["tags", "check", "library:shop"]).output().unwrap();
    assert_sentence(&alone, 2, &["LIBRARY"]);
}

#[test]
fn weights_are_fitted_and_used() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    let tags =
        |arguments: &[&str]| cutline(&folder, &[&["tags"], arguments].concat()).output().unwrap();
    let line =
        |name: &str, tag: &str| format!("{{\"path\": {:?}, \"tags\": [{tag:?}]}}\n", photo(name));
    let photos = ["cat", "coffee", "astronaut", "rocket"];
    let truth: String = photos
        .iter()
        .zip(["cat", "cup", "woman", "dog"])
        .map(|(name, tag)| line(name, tag))
        .collect();
    write("truth.jsonl", &truth);
    write("mine.json", r#"["cat", "dog", "cup", "woman", "table"]"#);
    let fit = |more: &[&str]| {
        tags(&[&["fit", "truth.jsonl", "--vocabulary", "mine.json"], more].concat())
    };
    let output = fit(&["--folds", "2", "-o", "weights.json", "--json"]);
    assert_status(&output, 0);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["photos"], &report["folds"]), (&4.into(), &2.into()), "{report}");
    assert!(report["before"].as_f64().is_some_and(|nats| nats > 0.0), "{report}");
    let gain = report["before"].as_f64().unwrap() - report["after"].as_f64().unwrap();
    let better = gain > report["standard_error"].as_f64().unwrap();
    assert_eq!(report["better"], better);
    assert_eq!(folder.path().join("weights.json").exists(), better, "only if it is better");
    assert!(text(&fit(&["--folds", "2"]).stdout).contains("standard error"));
    assert_sentence(&fit(&["--folds", "3"]), 2, &["too few"]);
    assert_sentence(&tags(&["fit"]), 2, &["LIBRARY"]);

    // The tags that people gave to photos of a library.
    let library = |arguments: &[&str]| {
        cutline(&folder, arguments).env("LIBRARY", "sqlite:photos.db").output().unwrap()
    };
    for (name, tag) in photos.iter().zip(["cat", "cup", "woman", "dog"]) {
        assert_status(&library(&["caption", &photo(name)]), 0);
        assert_status(&library(&["library", "edit", "--field", "tags", &photo(name), tag]), 0);
    }
    let output = library(&["tags", "fit", "--vocabulary", "mine.json", "--folds", "2", "--json"]);
    assert_status(&output, 0);
    let kept: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&kept["photos"], &kept["failed"]), (&4.into(), &0.into()), "{kept}");
    assert_ne!(kept["weights"]["bias"], Value::Null);

    // Weights of a file decide.
    for (bias, count) in [(50.0, 5), (-50.0, 0)] {
        let weights = format!(
            "{{\"bias\": {bias}, \"likelihood\": 0, \"caption\": 0, \"near\": 0, \"not_near\": 0}}"
        );
        write("own.json", &weights);
        let arguments = ["tags", "--vocabulary", "mine.json", &photo("cat")];
        let output = cutline(&folder, &arguments).env("TAG_WEIGHTS", "own.json").output().unwrap();
        assert_status(&output, 0);
        let (_, tags) = text(&output.stdout).trim_end_matches('\n').split_once('\t').unwrap();
        assert_eq!(tags.split(", ").filter(|tag| !tag.is_empty()).count(), count, "{tags}");
    }
}
