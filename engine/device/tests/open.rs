//! Opening says clearly why it refuses, and what is open stays ours.
// Everything here is a test or a part of one.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;

use engine_device::contract::block_on;
use engine_device::{
    Allocation, BlockDevice, DEPTH_MAX, DeviceError, DirectIo, Discard, FileDevice, IoVec,
    OpenOptions, Operation, QueueExt, completion_pair,
};
use engine_memory::Buffer;

fn cause(path: &Path, options: &OpenOptions) -> String {
    match FileDevice::open(path, options) {
        Ok(_) => panic!("{} was opened", path.display()),
        Err(DeviceError::Open { path: told, cause }) => {
            assert_eq!(told, path.display().to_string());
            cause
        }
        Err(error) => panic!("{error}"),
    }
}

#[track_caller]
fn refused(path: &Path, options: &OpenOptions, words: &str) {
    let cause = cause(path, options);
    assert!(cause.contains(words), "{cause:?} does not say {words:?}");
}

fn buffer(len: usize, mark: u8) -> Buffer {
    let mut buffer = Buffer::try_new(len).unwrap();
    buffer.fill(mark);
    buffer
}

#[test]
fn what_is_not_a_device_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let options = OpenOptions::default();
    refused(&directory.path().join("none"), &options, "no such file");
    refused(directory.path(), &options, "a directory");
    refused(Path::new("/dev/null"), &options, "a character device");
    let path = directory.path().join("device");
    std::fs::write(&path, "").unwrap();
    refused(&path, &options, "its size is 0");
    std::fs::write(&path, [0; 5000]).unwrap();
    refused(&path, &options, "5000 bytes is not a multiple of 4096");
    std::fs::write(&path, [0; 8192]).unwrap();
    for block_size in [0, 1, 256, 1000, 8192] {
        let options = OpenOptions { block_size: Some(block_size), ..options.clone() };
        refused(&path, &options, "not a power of two from 512 to 4096");
    }
    assert!(FileDevice::open(&path, &options).is_ok());
}

#[test]
fn a_file_in_memory_has_no_direct_io() {
    let Ok(directory) = tempfile::tempdir_in("/dev/shm") else { return };
    let path = directory.path().join("device");
    FileDevice::create(&path, 1 << 20, Allocation::Sparse).unwrap();
    let options = OpenOptions { direct: DirectIo::Require, ..OpenOptions::default() };
    refused(&path, &options, "in memory");
}

#[test]
fn a_device_in_use_is_refused_and_free_again_after_a_close() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("device");
    FileDevice::create(&path, 1 << 20, Allocation::Full).unwrap();
    let (writing, reading) =
        (OpenOptions::default(), OpenOptions { read_only: true, ..OpenOptions::default() });
    let device = FileDevice::open(&path, &writing).unwrap();
    refused(&path, &writing, "in use");
    refused(&path, &reading, "in use");
    drop(device);
    let readers = [FileDevice::open(&path, &reading), FileDevice::open(&path, &reading)];
    assert!(readers.iter().all(Result::is_ok), "read-only users share");
    refused(&path, &writing, "in use");
    drop(readers);
    // The kernel's lingering hold on the file of a closed ring once made this fail now and then.
    for _ in 0..50 {
        let device = FileDevice::open(&path, &writing).unwrap();
        let queue = device.open_queue(4).unwrap();
        block_on(&*queue, queue.flush()).unwrap();
    }
}

#[test]
fn a_queue_keeps_its_device_open() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("device");
    FileDevice::create(&path, 1 << 20, Allocation::Full).unwrap();
    let device = FileDevice::open(&path, &OpenOptions::default()).unwrap();
    let queue = device.open_queue(1).unwrap();
    drop(device);
    refused(&path, &OpenOptions::default(), "in use");
    assert!(block_on(&*queue, queue.read(0, buffer(4096, 1))).unwrap().iter().all(|b| *b == 0));
}

#[test]
fn a_file_that_grew_is_used_up_to_its_new_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("device");
    FileDevice::create(&path, 1 << 20, Allocation::Sparse).unwrap();
    let device = FileDevice::open(&path, &OpenOptions::default()).unwrap();
    let (queue, other) = (device.open_queue(4).unwrap(), device.open_queue(4).unwrap());
    let write = |at| {
        let data = IoVec::from_iter([buffer(4096, 1).freeze()]);
        block_on(&*queue, queue.write(at, data, false))
    };
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len((2 << 20) + 1000).unwrap();
    assert!(matches!(write(1 << 20), Err(DeviceError::OutOfRange { .. })), "nobody looked yet");
    assert_eq!(queue.refresh_size(), Ok(2 << 20), "whole blocks");
    write((2 << 20) - 4096).unwrap();
    assert!(write(2 << 20).is_err());
    let read = block_on(&*other, other.read((2 << 20) - 4096, buffer(4096, 0))).unwrap();
    assert!(read.iter().all(|byte| *byte == 1), "the other queue knows as well");
    file.set_len(1 << 20).unwrap();
    assert_eq!(queue.refresh_size(), Ok(1 << 20), "one that has shrunk says so");
}

/// Whatever the file system could do: holes cost more than they give.
#[test]
fn files_are_discarded_only_when_that_is_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("device");
    std::fs::write(&path, vec![3; 1 << 20]).unwrap();
    for (discard, wanted) in
        [(Discard::Auto, false), (Discard::Never, false), (Discard::Always, true)]
    {
        let options = OpenOptions { discard, ..OpenOptions::default() };
        let device = FileDevice::open(&path, &options).unwrap();
        assert_eq!(device.info().discard, wanted, "{discard:?}");
        let queue = device.open_queue(4).unwrap();
        assert_eq!(block_on(&*queue, queue.discard(0, 4096)).is_ok(), wanted, "{discard:?}");
        assert!(block_on(&*queue, queue.write_zeroes(4096, 4096)).is_ok());
    }
}

#[test]
fn read_only_devices_refuse_changes() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("device");
    std::fs::write(&path, vec![3; 1 << 20]).unwrap();
    let options = OpenOptions { read_only: true, ..OpenOptions::default() };
    let device = FileDevice::open(&path, &options).unwrap();
    let queue = device.open_queue(4).unwrap();
    let data = IoVec::from_iter([buffer(4096, 1).freeze()]);
    let error = block_on(&*queue, queue.write(0, data, false)).unwrap_err();
    assert!(matches!(error, DeviceError::Unsupported { .. }), "{error}");
    assert!(block_on(&*queue, queue.discard(0, 4096)).is_err());
    assert!(block_on(&*queue, queue.write_zeroes(0, 4096)).is_err());
    assert!(block_on(&*queue, queue.read(0, buffer(4096, 0))).unwrap().iter().all(|b| *b == 3));
}

#[test]
fn creating_is_all_or_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("device");
    for size in [0, 4095, 4097] {
        assert!(FileDevice::create(&path, size, Allocation::Sparse).is_err());
        assert!(!path.exists());
    }
    let error = FileDevice::create(&path, 1 << 60, Allocation::Full).unwrap_err();
    assert!(error.to_string().contains("no room"), "{error}");
    assert!(!path.exists(), "the beginning of a file that did not fit is removed");
    FileDevice::create(&path, 1 << 20, Allocation::Sparse).unwrap();
    let error = FileDevice::create(&path, 1 << 20, Allocation::Sparse).unwrap_err();
    assert!(error.to_string().contains("exists"), "{error}");
}

#[test]
fn depths_out_of_range_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("device");
    FileDevice::create(&path, 1 << 20, Allocation::Sparse).unwrap();
    let device = FileDevice::open(&path, &OpenOptions::default()).unwrap();
    for depth in [0, DEPTH_MAX + 1, u32::MAX] {
        assert!(matches!(device.open_queue(depth), Err(DeviceError::Open { .. })));
    }
    assert!(device.open_queue(DEPTH_MAX).is_ok());
}

/// A file that was made shorter behind our back: reads past its new end are errors, not zeroes and
/// not endless.
#[test]
fn a_shortened_file_gives_an_error() {
    for direct in [DirectIo::Auto, DirectIo::Off] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("device");
        FileDevice::create(&path, 1 << 20, Allocation::Full).unwrap();
        let options = OpenOptions { direct, ..OpenOptions::default() };
        let device = FileDevice::open(&path, &options).unwrap();
        let queue = device.open_queue(4).unwrap();
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(8192).unwrap();
        assert!(block_on(&*queue, queue.read(4096, buffer(4096, 1))).is_ok());
        for offset in [4096, 65_536] {
            let error = block_on(&*queue, queue.read(offset, buffer(8192, 1))).unwrap_err();
            let DeviceError::Io { cause, .. } = error else { panic!("{error}") };
            assert!(cause.contains("made shorter"), "{cause}");
        }
    }
}

/// Queues on several threads at once, each on its own part.
#[test]
fn each_thread_has_its_queue() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("device");
    FileDevice::create(&path, 4 << 20, Allocation::Full).unwrap();
    let device = Arc::new(FileDevice::open(&path, &OpenOptions::default()).unwrap());
    let threads: Vec<_> = (0..4_u64)
        .map(|number| {
            let device = Arc::clone(&device);
            std::thread::spawn(move || {
                let queue = device.open_queue(8).unwrap();
                let futures: Vec<_> = (0..64)
                    .map(|block| {
                        let (done, future) = completion_pair();
                        let data = IoVec::from_iter([buffer(4096, number as u8 + 1).freeze()]);
                        let offset = (number * 256 + block) * 4096;
                        queue.submit(Operation::Write { offset, data, fua: false }, done);
                        future
                    })
                    .collect();
                for future in futures {
                    block_on(&*queue, future).unwrap();
                }
                block_on(&*queue, queue.flush()).unwrap();
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    drop(device);
    let bytes = std::fs::read(&path).unwrap();
    for number in 0..4 {
        let start = number * (1 << 20);
        assert!(bytes[start..start + 64 * 4096].iter().all(|byte| *byte == number as u8 + 1));
    }
}
