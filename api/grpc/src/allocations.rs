//! Who holds how much memory, in the words of the interface.

use engine_memory::profile::{Holding, Kind, Mode};
use proto::v1;
use tonic::Status;

use crate::status::bad_field;

/// A site as it is told.
pub(crate) fn site(from: Holding) -> v1::AllocationSite {
    let kind = match from.kind {
        Kind::Heap => v1::AllocationKind::Heap,
        Kind::Buffers => v1::AllocationKind::Buffers,
        Kind::Free => v1::AllocationKind::Free,
    };
    v1::AllocationSite {
        name: from.name.to_owned(),
        file: from.file.to_owned(),
        line: from.line,
        module: from.module.to_owned(),
        function: from.function.to_owned(),
        kind: kind.into(),
        live_bytes: from.live_bytes,
        live_objects: from.live_objects,
        allocations: from.allocations,
        peak_bytes: from.peak_bytes,
        failures: from.failures,
    }
}

/// A mode as it is told.
pub(crate) fn profiling(mode: Mode) -> v1::AllocationProfiling {
    match mode {
        Mode::On => v1::AllocationProfiling::On,
        Mode::Off => v1::AllocationProfiling::Off,
        Mode::Never => v1::AllocationProfiling::Never,
    }
}

/// The mode that a client asks for.
pub(crate) fn mode(from: i32) -> Result<Mode, Status> {
    match v1::AllocationProfiling::try_from(from) {
        Ok(v1::AllocationProfiling::On) => Ok(Mode::On),
        Ok(v1::AllocationProfiling::Off) => Ok(Mode::Off),
        Ok(v1::AllocationProfiling::Never) => Ok(Mode::Never),
        Ok(v1::AllocationProfiling::Unspecified) | Err(_) => {
            Err(bad_field("profiling", "must be ON, OFF or NEVER"))
        }
    }
}
