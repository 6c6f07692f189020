//! Options of volumes and file trees.

use proto::v1;
use serde_json::{Value, json};

use crate::admin::given;
use crate::args::{OptionCommand, StorageArguments};
use crate::connect::Session;
use crate::failure::{Failure, Result};
use crate::output::Output;
use crate::size;

const COMPRESSION: &str = "compression";
const FRAME: &str = "compression_frame";

impl StorageArguments {
    /// As a request to create something has them.
    pub(crate) fn options(self) -> Option<v1::SubvolumeOptions> {
        Some(v1::SubvolumeOptions {
            compression: self.compression.unwrap_or_default(),
            compression_frame_bytes: self.compression_frame.unwrap_or_default(),
        })
    }
}

/// The options of something, by name.
pub(crate) fn options_json(options: Option<&v1::SubvolumeOptions>) -> Value {
    match options {
        Some(options) => json!({
            COMPRESSION: options.compression,
            FRAME: options.compression_frame_bytes,
        }),
        None => Value::Null,
    }
}

/// How much more data there would be if nothing were compressed, as in 2.31x.
pub(crate) fn ratio(used: Option<u64>, saved: Option<u64>) -> String {
    match (used, saved) {
        (Some(used @ 1..), Some(saved)) => {
            // Not added as numbers: of a damaged pool both may be as large as can be.
            format!("{:.2}x", 1.0 + saved as f64 / used as f64)
        }
        _ => "-".to_owned(),
    }
}

/// `option ...`.
pub(crate) async fn run(session: &Session, command: OptionCommand, output: &Output) -> Result<()> {
    match command {
        OptionCommand::Get { name, option } => {
            let request = v1::GetSubvolumeRequest { name, include_usage: false };
            let reply = session.subvolumes().get_subvolume(request).await?.into_inner();
            show(&given(reply.subvolume)?, option.as_deref(), output)
        }
        OptionCommand::Set { name, options } => {
            let mut request = v1::SetSubvolumeOptionsRequest { name, ..Default::default() };
            for (option, value) in options {
                match option.as_str() {
                    COMPRESSION => request.compression = Some(value),
                    FRAME => request.compression_frame_bytes = Some(frame(&value)?),
                    other => return Err(unknown(other)),
                }
            }
            let reply = session.subvolumes().set_subvolume_options(request).await?.into_inner();
            show(&given(reply.subvolume)?, None, output)
        }
    }
}

fn unknown(option: &str) -> Failure {
    Failure::usage(format!("there is no option {option:?}; there are {COMPRESSION} and {FRAME}"))
}

fn frame(value: &str) -> Result<u32> {
    let bytes = size::parse(value).ok().and_then(|bytes| u32::try_from(bytes).ok());
    bytes.ok_or_else(|| Failure::usage(format!("{FRAME}={value}: write a size of 8KiB to 128KiB")))
}

fn show(of: &v1::Subvolume, only: Option<&str>, output: &Output) -> Result<()> {
    let options = given(of.options.as_ref())?;
    let frame = size::show(u64::from(options.compression_frame_bytes));
    let mut all = vec![(COMPRESSION, options.compression.clone()), (FRAME, frame)];
    let mut values = options_json(Some(options));
    if let Some(only) = only {
        all.retain(|(option, _)| *option == only);
        if all.is_empty() {
            return Err(unknown(only));
        }
        values = json!({ only: values[only] });
    }
    output.value(&values, || {
        let lines = all.iter().map(|(option, value)| format!("{option:<18} {value}"));
        lines.collect::<Vec<_>>().join("\n")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_told_where_they_are_known() {
        assert_eq!(ratio(Some(100), Some(150)), "2.50x");
        assert_eq!(ratio(Some(100), Some(0)), "1.00x");
        assert_eq!(ratio(Some(u64::MAX), Some(u64::MAX)), "2.00x");
        assert_eq!((ratio(None, None), ratio(Some(0), Some(0))), ("-".to_owned(), "-".to_owned()));
    }
}
