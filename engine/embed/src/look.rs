//! Looking at devices without opening the pool on them: read only, and while others may use them.

use std::path::PathBuf;
use std::rc::Rc;

use engine_device::{BlockDevice as _, DeviceQueue, FileDevice, OpenOptions};

use crate::members::on_reactor;

/// Operations in flight per device.
const QUEUE_DEPTH: u32 = 32;

/// Opens `paths` to read and runs `work` on queues to them, in the order given.
///
/// # Errors
/// A device that cannot be opened, or what `work` says.
pub fn look<T: 'static>(
    paths: &[PathBuf],
    work: impl AsyncFnOnce(Vec<Rc<dyn DeviceQueue>>) -> Result<T, String> + 'static,
) -> Result<T, String> {
    let queues = open_to_read(paths)?;
    on_reactor(queues.clone(), async move { work(queues).await })
}

/// Queues to devices that others may use.
pub(crate) fn open_to_read(paths: &[PathBuf]) -> Result<Vec<Rc<dyn DeviceQueue>>, String> {
    let options = OpenOptions { read_only: true, exclusive: false, ..OpenOptions::default() };
    let mut queues = Vec::new();
    for path in paths {
        let device = FileDevice::open(path, &options).map_err(|error| error.to_string())?;
        queues.push(device.open_queue(QUEUE_DEPTH).map_err(|error| error.to_string())?);
    }
    Ok(queues)
}
