//! Commands on devices that no daemon uses: `pool format` and `fsck`.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use engine_store::api::Verify;
use engine_store::engine::Opening;

use crate::args::{FormatArguments, FsckArguments};
use crate::failure::{Failure, Result, exit};
use crate::format::{self, FormatRequest, NoCheck};
use crate::output::{Output, agree, printable};
use crate::size::show;

/// `pool format`.
pub(crate) fn format(arguments: &FormatArguments, output: &Output) -> Result<u8> {
    distinct(&arguments.devices)?;
    for path in &arguments.devices {
        let exists =
            path.try_exists().map_err(|error| Failure::local(path, "cannot stat", &error))?;
        if !exists && arguments.file_size.is_none() {
            return Err(Failure::new(format!("{} does not exist", path.display()))
                .code(exit::NOT_FOUND)
                .hint("give --file-size to create files"));
        }
    }
    let report = format::format(&FormatRequest {
        devices: arguments.devices.clone(),
        label: arguments.label.clone(),
        bucket_bytes: arguments.bucket_size,
        shard_count: arguments.shards,
        file_size_bytes: arguments.file_size,
        force: arguments.force,
    })?;
    let value = json!({
        "pool_uuid": report.pool_uuid,
        "shard_count": report.shard_count,
        "size_bytes": report.size_bytes,
    });
    let sentence = format!(
        "formatted pool {} of {} with {} shards",
        report.pool_uuid,
        show(report.size_bytes),
        report.shard_count
    );
    output.done(&value, &sentence)?;
    Ok(exit::OK)
}

/// `fsck` of devices.
pub(crate) fn check(arguments: &FsckArguments, output: &Output) -> Result<u8> {
    let devices = &arguments.devices;
    let verify = match (arguments.verify_data, arguments.resume) {
        (false, _) => Verify::Nothing,
        (true, false) => Verify::All,
        (true, true) => Verify::Resume,
    };
    distinct(devices)?;
    let found = match format::check(devices, verify) {
        Ok(found) if arguments.repair && !found.problems.is_empty() => {
            let count = found.problems.len() as u64;
            agree_to_repair(&found.problems, count, arguments.yes, output)?;
            format::repair(devices, verify, Opening::Whole)?
        }
        Ok(found) => found,
        Err(NoCheck::Damaged(failure)) if arguments.repair => {
            output.warning(&failure.message);
            agree(arguments.yes, "Give up the keys that cannot be read, and repair the rest?")?;
            format::repair(devices, verify, Opening::Salvage)?
        }
        Err(NoCheck::Damaged(failure)) => {
            let hint = "cairn fsck --repair gives up index nodes that cannot be read";
            return Err(failure.code(exit::DAMAGED).hint(hint));
        }
        Err(NoCheck::Failed(failure)) => return Err(failure),
    };
    let checked = found.checked.iter().map(|(name, count)| (name.as_str(), *count));
    report(&found.problems, found.problems.len() as u64, &found.notes, checked, output)?;
    Ok(exit::OK)
}

/// Tells what was found and asks whether to repair it.
pub(crate) fn agree_to_repair(
    problems: &[String],
    count: u64,
    yes: bool,
    output: &Output,
) -> Result<()> {
    for problem in problems {
        output.warning(&printable(problem.as_bytes()));
    }
    agree(yes, &format!("Repair {count} problems?"))
}

/// Prints what a check found; an error with the exit code for it when that is anything.
pub(crate) fn report<'a>(
    problems: &[String],
    problem_count: u64,
    notes: &[String],
    checked: impl Iterator<Item = (&'a str, u64)>,
    output: &Output,
) -> Result<()> {
    let checked: Vec<_> = checked.collect();
    let counts = checked.iter().map(|(name, count)| ((*name).to_owned(), json!(count)));
    let value = json!({
        "problem_count": problem_count,
        "problems": problems,
        "notes": notes,
        "checked": Value::Object(counts.collect()),
    });
    output.value(&value, || {
        let mut lines: Vec<_> =
            notes.iter().map(|note| printable(format!("note: {note}").as_bytes())).collect();
        lines.extend(problems.iter().map(|problem| printable(problem.as_bytes())));
        lines.extend(checked.iter().map(|(name, count)| format!("checked {count} {name}")));
        if problem_count == 0 {
            lines.push("no problems found".to_owned());
        }
        lines.join("\n")
    })?;
    if problem_count == 0 {
        return Ok(());
    }
    Err(Failure::new(format!("{problem_count} problems found")).code(exit::DAMAGED))
}

fn distinct(devices: &[PathBuf]) -> Result<()> {
    let mut seen = std::collections::BTreeSet::new();
    for device in devices {
        let real = device.canonicalize().unwrap_or_else(|_| Path::new(device).to_owned());
        if !seen.insert(real) {
            return Err(Failure::usage(format!("{} is given twice", device.display())));
        }
    }
    Ok(())
}
