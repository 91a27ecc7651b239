//! Finds the model's files: `models/cutline-small` in the repository, or the folder `model` in a
//! package of this crate. In the repository, `model` is a symbolic link to the former, which a
//! clone on Windows may lack.

use std::path::Path;

fn main() -> Result<(), String> {
    let here = std::env::var("CARGO_MANIFEST_DIR").map_err(|error| error.to_string())?;
    let folders = ["../../models/cutline-small", "model"].map(|name| Path::new(&here).join(name));
    let found = folders.iter().find(|folder| folder.join("model.safetensors").is_file());
    let folder = found.ok_or_else(|| {
        format!(
            "the files of cutline-small are in neither of {folders:?}; clone the repository again"
        )
    })?;
    println!("cargo::rustc-env=SMALL_MODEL={}", folder.display());
    println!("cargo::rerun-if-changed={}", folder.display());
    Ok(())
}
