//! Finds the model's files: in the repository they are `models/cutline-small`, in a package of this
//! crate the folder `model`, which is a link to it.

use std::path::Path;

fn main() {
    let here = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    let folders = ["../../models/cutline-small", "model"].map(|name| Path::new(&here).join(name));
    let found = folders.iter().find(|folder| folder.join("model.safetensors").is_file());
    let Some(folder) = found else {
        panic!("the files of cutline-small are in neither of {folders:?}; check the clone");
    };
    println!("cargo::rustc-env=SMALL_MODEL={}", folder.display());
    println!("cargo::rerun-if-changed={}", folder.display());
}
