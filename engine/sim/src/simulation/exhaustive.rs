//! A crash at every write: a short run of operations of every kind is repeated, each time with a crash
//! when one of its writes is in flight, in each way in which that write and those before it may be
//! left. The same seed gives the same run up to the crash, so that no write is missed.

use std::rc::Rc;

use super::{Failure, SeedReport, Simulation, run_with};
use crate::disk::{CutPoint, CutStyle};
use crate::options::Options;

/// What a script came to.
#[derive(Clone, Debug)]
pub struct ScriptReport {
    /// Its seed.
    pub seed: u64,
    /// Writes and discards of the script, the orderly stop at its end included.
    pub writes: u64,
    /// Runs that were cut.
    pub runs: u64,
    /// The run without a cut.
    pub whole: SeedReport,
    /// The first run that broke a promise: at which write, how it was cut, what is wrong.
    pub failure: Option<(u64, CutStyle, Failure)>,
    /// How often recovery came through each of its branches.
    pub branches: Vec<(&'static str, u64)>,
}

/// Runs the script of `options` whole, then with a crash at each write, in each style, or (with
/// `every` above 1) at some of these, evenly spread. Ends with the first broken promise.
#[must_use]
pub fn run(options: &Options, every: u64) -> ScriptReport {
    let counting = CutPoint::new(0);
    let whole = run_to(options, &counting, CutStyle::OnlyDurable);
    let mut report = ScriptReport {
        seed: options.seed,
        writes: counting.seen(),
        runs: 0,
        failure: whole.failure.clone().map(|failure| (0, CutStyle::OnlyDurable, failure)),
        branches: whole.branches.clone(),
        whole,
    };
    let mut turn = options.seed;
    for write in 1..=report.writes {
        for style in CutStyle::ALL {
            turn += 1;
            if report.failure.is_some() || !turn.is_multiple_of(every.max(1)) {
                continue;
            }
            let cut = run_at(options, write, style);
            report.runs += 1;
            for (sum, (_, count)) in report.branches.iter_mut().zip(&cut.branches) {
                sum.1 += count;
            }
            report.failure = cut.failure.map(|failure| (write, style, failure));
        }
    }
    report
}

/// Runs the script of `options` with a crash at one write.
#[must_use]
pub fn run_at(options: &Options, write: u64, style: CutStyle) -> SeedReport {
    let point = CutPoint::new(write);
    let mut report = run_to(options, &point, style);
    if report.failure.is_none() && !point.is_reached() {
        let what = format!("the run ended before its write {write}: it is not the same run");
        report.failure = Some(Failure { what, events: Vec::new() });
    }
    report
}

fn run_to(options: &Options, point: &Rc<CutPoint>, style: CutStyle) -> SeedReport {
    run_with(options, |simulation| simulation.run_script(point, style))
}

impl Simulation<'_> {
    fn run_script(&mut self, point: &Rc<CutPoint>, style: CutStyle) -> Result<(), String> {
        self.format()?;
        self.start_process();
        self.until_open()?;
        self.set_up()?;
        self.disks.iter().for_each(|disk| disk.set_cut(Some(Rc::clone(point))));
        self.world.borrow_mut().operations_left = self.options.operations;
        self.start_clients();
        self.drive(u64::MAX, || point.is_reached() || self.world.borrow().clients_running == 0)?;
        if !point.is_reached() && self.failure().is_none() {
            self.stop_in_order(|| point.is_reached())?;
        }
        if self.failure().is_some() {
            return Ok(());
        }
        self.end_process();
        for disk in &self.disks {
            disk.settle_cut(style);
        }
        self.note_crash(style.takes_power());
        self.start_process();
        self.verify(Some(style.takes_power()), u64::MAX)?;
        if self.failure().is_some() {
            return Ok(());
        }
        // It goes on from there as ever.
        self.world.borrow_mut().operations_left = 10;
        self.start_clients();
        self.drive(u64::MAX, || self.world.borrow().clients_running == 0)?;
        if self.goes_on() { self.finish() } else { Ok(()) }
    }
}
