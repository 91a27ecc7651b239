//! Compiles the kernels to PTX, if the feature `cuda` is on.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=src");
    #[cfg(feature = "cuda")]
    {
        let output = std::path::PathBuf::from(std::env::var("OUT_DIR")?).join("ptx.rs");
        let kernels = cudaforge::KernelBuilder::new()
            .source_dir("src")
            .arg("-std=c++17")
            .arg("-O3")
            .build_ptx()?;
        kernels.write(output)?;
    }
    Ok(())
}
