//! A glommio executor as host.
//!
//! glommio 0.9 brings placement and the machinery of its own tasks; no I/O is done through it. Its run
//! loop can park although a task is runnable when its preempt timer has fired before anything ran
//! (`Executor::run_task_queues` answers false), which a reactor that blocks by itself provokes. So the
//! preempt timer is set out of reach. With it glommio hardly ever asks the core's task to yield: other
//! tasks on the same executor would starve, and none are started here.

use std::thread::JoinHandle;
use std::time::Duration;

use crate::host::{BuildDriven, Host, place};

/// Turns between two yields to glommio.
const TURNS_PER_YIELD: usize = 64;

/// Longer than any process lives; see the header.
const PREEMPT_TIMER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// A `glommio::LocalExecutor` per core. Needs io_uring and 512 KiB of locked memory per core, and
/// says so when it has not got them.
#[derive(Clone, Copy, Debug, Default)]
pub struct GlommioHost;

impl Host for GlommioHost {
    fn name(&self) -> &'static str {
        "glommio"
    }

    fn start(
        &self,
        thread: String,
        cpu: Option<usize>,
        build: BuildDriven,
    ) -> Result<JoinHandle<()>, String> {
        // The executor is made on its thread, so its refusal has to travel back.
        let (started, outcome) = std::sync::mpsc::sync_channel(1);
        let handle = std::thread::Builder::new()
            .name(thread.clone())
            .spawn(move || run(&thread, cpu, build, &started))
            .map_err(|error| format!("cannot start a thread: {error}"))?;
        match outcome.recv() {
            Ok(Ok(())) => Ok(handle),
            Ok(Err(message)) => Err(message),
            Err(_) => Err("glommio ended before it had started".to_owned()),
        }
    }
}

fn run(
    thread: &str,
    cpu: Option<usize>,
    build: BuildDriven,
    started: &std::sync::mpsc::SyncSender<Result<(), String>>,
) {
    let placement = place(cpu);
    let made = glommio::LocalExecutorBuilder::new(glommio::Placement::Unbound)
        .name(thread)
        .preempt_timer(PREEMPT_TIMER)
        .make();
    let executor = match made {
        Ok(executor) => executor,
        Err(error) => {
            let message = format!(
                "glommio cannot start: {error} (it needs io_uring and a locked-memory limit of \
                 512 KiB or more: `ulimit -l`, or LimitMEMLOCK= of the unit; the thread host needs \
                 neither)"
            );
            // The starter waits for exactly this; if it is gone, nobody is left to tell.
            let _ = started.send(Err(message));
            return;
        }
    };
    let _ = started.send(Ok(()));
    executor.run(async move {
        let Some(mut driven) = build(placement) else { return };
        let mut turns = 0usize;
        while driven.step() {
            turns = turns.wrapping_add(1);
            if turns.is_multiple_of(TURNS_PER_YIELD) {
                glommio::yield_if_needed().await;
            }
        }
    });
}
