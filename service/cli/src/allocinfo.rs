//! `allocinfo`: who in the daemon holds how much memory.
//!
//! The text has the shape of Linux's /proc/allocinfo, so that tools for that file read it too.

use engine_memory::profile;
use proto::v1;
use serde_json::{Value, json};

use crate::args::{AllocinfoArguments, Profiling};
use crate::connect::Session;
use crate::failure::Result;
use crate::output::Output;

/// Runs the command.
pub(crate) async fn run(
    session: &Session,
    arguments: &AllocinfoArguments,
    output: &Output,
) -> Result<()> {
    if let Some(wanted) = arguments.profiling {
        return switch(session, wanted, output).await;
    }
    let largest = match (arguments.top, arguments.sort) {
        (Some(count), _) => count,
        (None, true) => u32::MAX,
        (None, false) => 0,
    };
    let request = v1::GetAllocationsRequest { largest };
    let reply = session.stats().get_allocations(request).await?.into_inner();
    if reply.profiling() != v1::AllocationProfiling::On {
        let mode = name(reply.profiling());
        output.warning(&format!("allocation profiling is {mode}: not all memory is counted"));
    }
    let value = json!({
        "profiling": name(reply.profiling()),
        "sites": reply.sites.iter().map(site_json).collect::<Vec<_>>(),
    });
    output.value(&value, || text(&reply.sites))
}

async fn switch(session: &Session, wanted: Profiling, output: &Output) -> Result<()> {
    let profiling = match wanted {
        Profiling::On => v1::AllocationProfiling::On,
        Profiling::Off => v1::AllocationProfiling::Off,
        Profiling::Never => v1::AllocationProfiling::Never,
    };
    let request = v1::SetAllocationProfilingRequest { profiling: profiling.into() };
    session.stats().set_allocation_profiling(request).await?;
    let mode = name(profiling);
    output.done(&json!({ "profiling": mode }), &format!("allocation profiling is {mode}"))
}

fn name(profiling: v1::AllocationProfiling) -> &'static str {
    match profiling {
        v1::AllocationProfiling::Unspecified => "unknown",
        v1::AllocationProfiling::On => "on",
        v1::AllocationProfiling::Off => "off",
        v1::AllocationProfiling::Never => "never",
    }
}

fn kind(site: &v1::AllocationSite) -> &'static str {
    match site.kind() {
        v1::AllocationKind::Unspecified => "unknown",
        v1::AllocationKind::Heap => "heap",
        v1::AllocationKind::Buffers => "buffers",
        v1::AllocationKind::Free => "free",
    }
}

fn site_json(site: &v1::AllocationSite) -> Value {
    json!({
        "name": site.name,
        "file": site.file,
        "line": site.line,
        "module": site.module,
        "function": site.function,
        "kind": kind(site),
        "live_bytes": site.live_bytes,
        "live_objects": site.live_objects,
        "allocations": site.allocations,
        "peak_bytes": site.peak_bytes,
        "failures": site.failures,
    })
}

fn text(sites: &[v1::AllocationSite]) -> String {
    let mut text = profile::HEADER.to_owned();
    for site in sites {
        let place = (site.file.as_str(), site.line, site.function.as_str());
        let module = profile::module_of(&site.module, kind(site));
        text.push_str(&profile::line(site.live_bytes, site.live_objects, place, &module));
    }
    // The end of the last line is printed with it.
    text.truncate(text.trim_end_matches('\n').len());
    text
}
