//! The program's load on several cores.

use std::path::Path;
use std::process::Command;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// What the program prints, which must be an object of JSON.
fn benches(file: &Path, options: &[&str]) -> Result<String> {
    let mut program = Command::new(env!("CARGO_BIN_EXE_benches"));
    let output = program.arg("--file").arg(file).args(options).output()?;
    let (printed, said) = (String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
    if output.status.success() && printed.starts_with('{') {
        return Ok(printed);
    }
    Err(format!("{options:?}: {}: {printed} {said}", output.status).into())
}

#[test]
fn cores_share_a_load_and_leave_a_pool_that_opens() -> Result<()> {
    let directory = std::env::temp_dir().join(format!("cairn-cores-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    let file = directory.join("pool");
    std::fs::File::create(&file)?.set_len(256 << 20)?;
    let load = ["--subject", "engine-cores", "--depth", "8", "--seconds", "1", "--pattern"];
    for pattern in ["randwrite", "read"] {
        let printed = benches(&file, &[&load[..], &[pattern, "--cores", "2"]].concat())?;
        assert!(printed.contains("\"operations\":") && !printed.contains("\"operations\":0,"));
    }
    benches(&file, &["--subject", "engine-open"])?;
    std::fs::remove_dir_all(&directory)?;
    Ok(())
}
