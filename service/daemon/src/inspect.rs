//! What a configuration says of this machine: processors, paths, devices. Reads only.

use std::fs::File;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use crate::config::{Config, Problem};

/// All problems that starting with `config` would meet on this machine, as far as they can be told
/// without opening the pool.
pub(crate) fn check(config: &Config) -> Vec<Problem> {
    let mut problems = Vec::new();
    for device in &config.pool.devices {
        if let Err(why) = check_device(device) {
            problems.push(Problem::new("pool.devices", why));
        }
    }
    if problems.is_empty() {
        let wrong = engine_embed::members::check(&config.pool.devices).into_iter();
        problems.extend(wrong.map(|why| Problem::new("pool.devices", why)));
    }
    check_processors(config, &mut problems);
    check_socket(config, &mut problems);
    for (key, path) in [
        ("grpc.tls_certificate", &config.grpc.tls_certificate),
        ("grpc.tls_key", &config.grpc.tls_key),
        ("grpc.tls_client_ca", &config.grpc.tls_client_ca),
    ] {
        if let Some(path) = path
            && let Err(error) = File::open(path)
        {
            let what = format!("cannot read {}: {error}", path.display());
            problems.push(Problem::new(key, what));
        }
    }
    problems
}

fn check_device(path: &Path) -> Result<(), String> {
    let name = path.display();
    let metadata = std::fs::metadata(path)
        .map_err(|error| format!("{name}: {error}; attach the device or mend the path"))?;
    let kind = metadata.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(format!("{name} is neither a block device nor a regular file"));
    }
    File::options().read(true).write(true).open(path).map_err(|error| {
        format!(
            "{name} cannot be opened to read and write: {error}; run as root or change its owner"
        )
    })?;
    Ok(())
}

/// Processors this process may run on.
pub(crate) fn processors() -> Result<Vec<u32>, String> {
    let set = rustix::thread::sched_getaffinity(None)
        .map_err(|error| format!("cannot read the processors available: {error}"))?;
    let count = rustix::thread::CpuSet::MAX_CPU;
    Ok((0..count).filter(|cpu| set.is_set(*cpu)).map(|cpu| cpu as u32).collect())
}

fn check_processors(config: &Config, problems: &mut Vec<Problem>) {
    let available = match processors() {
        Ok(available) => available,
        Err(why) => return problems.push(Problem::new("cores", why)),
    };
    for processor in config.cores.list.iter().flatten() {
        if !available.contains(processor) {
            let what = format!(
                "processor {processor} is not available to this process, these are: {}",
                ranges(&available)
            );
            problems.push(Problem::new("cores.list", what));
        }
    }
    let wanted = config.cores.count as usize;
    if config.cores.pin && wanted > available.len() {
        let what = format!(
            "{wanted} pinned cores on {} processors; use fewer, or set cores.pin = false",
            available.len()
        );
        problems.push(Problem::new("cores.count", what));
    }
}

/// Numbers as "0-3,8".
fn ranges(numbers: &[u32]) -> String {
    let mut text = String::new();
    let mut rest = numbers;
    while let Some(first) = rest.first() {
        let run = rest.iter().zip(*first..).take_while(|(number, next)| *number == next).count();
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(&first.to_string());
        if run > 1 {
            text.push('-');
            text.push_str(&rest[run - 1].to_string());
        }
        rest = &rest[run..];
    }
    text
}

fn check_socket(config: &Config, problems: &mut Vec<Problem>) {
    let directory = config.grpc.socket.parent().unwrap_or(Path::new("/"));
    if !directory.is_dir() {
        let what = format!("its directory {} does not exist; create it", directory.display());
        problems.push(Problem::new("grpc.socket", what));
    }
    if let Some(group) = &config.grpc.socket_group
        && let Err(why) = group_id(group)
    {
        problems.push(Problem::new("grpc.socket_group", why));
    }
}

/// The number of a group, by its name in /etc/group or its number.
pub(crate) fn group_id(group: &str) -> Result<u32, String> {
    if let Ok(number) = group.parse() {
        return Ok(number);
    }
    let groups = std::fs::read_to_string("/etc/group")
        .map_err(|error| format!("cannot read /etc/group: {error}"))?;
    group_in(&groups, group)
        .ok_or_else(|| format!("there is no group {group:?} in /etc/group; create it (groupadd)"))
}

/// group(5): name:password:number:members.
fn group_in(groups: &str, wanted: &str) -> Option<u32> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (name == wanted).then(|| fields.nth(1)?.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::config::parse;

    #[test]
    fn ranges_are_short() {
        assert_eq!(ranges(&[]), "");
        assert_eq!(ranges(&[4]), "4");
        assert_eq!(ranges(&[0, 1, 2, 5, 7, 8]), "0-2,5,7-8");
    }

    #[test]
    fn groups_are_found_by_name_and_number() {
        let groups = "root:x:0:\nbroken\ndisk:x:6:a,b\nodd:x:many:\n";
        assert_eq!(group_in(groups, "disk"), Some(6));
        assert_eq!(group_in(groups, "broken"), None);
        assert_eq!(group_in(groups, "odd"), None);
        assert_eq!(group_id("1234"), Ok(1234));
    }

    #[test]
    fn missing_things_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let text = format!(
            "pool.devices = [\"{0}/absent\", \"{0}\"]\ncores.list = [4095]\n\
             grpc.socket = \"{0}/no/socket\"\n",
            directory.path().display()
        );
        let problems = check(&parse(&text).unwrap());
        let text: Vec<String> = problems.iter().map(ToString::to_string).collect();
        let place = directory.path().display();
        assert_eq!(
            text[0],
            format!(
                "pool.devices: {place}/absent: No such file or directory (os error 2); attach the \
                 device or mend the path"
            )
        );
        let wanted = format!("pool.devices: {place} is neither a block device nor a regular file");
        assert_eq!(text[1], wanted);
        assert!(text[2].starts_with("cores.list: processor 4095 is not available"), "{}", text[2]);
        let wanted = format!("grpc.socket: its directory {place}/no does not exist; create it");
        assert_eq!(text[3], wanted);
        assert_eq!(text.len(), 4);
    }

    #[test]
    fn what_is_there_is_good() {
        let directory = tempfile::tempdir().unwrap();
        let device: PathBuf = directory.path().join("device");
        std::fs::write(&device, b"x").unwrap();
        assert_eq!(check_device(&device), Ok(()));
    }
}
