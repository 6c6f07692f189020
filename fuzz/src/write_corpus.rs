//! Writes the corpus that `connection_stream` starts from into a folder.

fn main() -> std::io::Result<()> {
    let Some(folder) = std::env::args().nth(1) else {
        eprintln!("usage: write_corpus FOLDER");
        std::process::exit(2);
    };
    std::fs::create_dir_all(&folder)?;
    for (number, stream) in nvme_target::testing::connection_stream_corpus().iter().enumerate() {
        std::fs::write(format!("{folder}/stream-{number}"), stream)?;
    }
    Ok(())
}
