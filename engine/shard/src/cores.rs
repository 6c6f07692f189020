//! Starting, watching and stopping the cores.
//!
//! Life of a core: its thread is placed, its reactor made, its seat in the mesh taken, and `init` called
//! there, which registers pollers, spawns tasks, and answers with the future that winds the core down.
//! On [`Cores::stop`] every core runs that future; when those of *all* cores are done, so that each
//! could still ask the others, all cores end and drop what is left. A core that faults (a task
//! panicked) is reported to the hook and takes all others down without winding down, since they wait
//! for its answers. With more cores than CPUs, those that share one sleep as soon as they are idle.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use engine_base::runtime::{LocalBoxFuture, Runtime};

use crate::doorbell::Doorbell;
use crate::error::{CoreError, ReactorFault};
use crate::executor::panic_message;
use crate::host::{self, Driven, Host, Placement, ThreadHost};
use crate::limits;
use crate::mesh::{MeshHandle, MeshSeat, mesh};
use crate::port::ControlPort;
use crate::reactor::{Handle, IdlePolicy, Reactor, ReactorConfig};
use crate::stats::ReactorStats;

/// Told of a core that stopped by itself, on that core's thread.
pub type FaultHook = Arc<dyn Fn(usize, &ReactorFault) + Send + Sync>;

/// Settings of a set of cores.
#[derive(Clone)]
pub struct CoresConfig {
    /// How many reactors; may be more than CPUs.
    pub cores: usize,
    /// CPUs to use, in turn; empty: those the process may run on.
    pub cpus: Vec<usize>,
    /// Whether to pin threads to them.
    pub pin: bool,
    /// Control ports to make.
    pub ports: usize,
    /// Messages per ring.
    pub ring_capacity: usize,
    /// Of every reactor; each gets a seed of its own derived from this one.
    pub reactor: ReactorConfig,
    /// Runs the reactors.
    pub host: Arc<dyn Host>,
    /// Told of faults.
    pub on_fault: Option<FaultHook>,
}

impl Default for CoresConfig {
    /// One core, pinned, on a bare thread, one control port.
    fn default() -> Self {
        Self {
            cores: 1,
            cpus: Vec::new(),
            pin: true,
            ports: 1,
            ring_capacity: limits::RING_CAPACITY,
            reactor: ReactorConfig::default(),
            host: Arc::new(ThreadHost),
            on_fault: None,
        }
    }
}

impl fmt::Debug for CoresConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CoresConfig")
            .field("cores", &self.cores)
            .field("cpus", &self.cpus)
            .field("pin", &self.pin)
            .field("ports", &self.ports)
            .field("ring_capacity", &self.ring_capacity)
            .field("reactor", &self.reactor)
            .field("host", &self.host.name())
            .finish_non_exhaustive()
    }
}

/// What a core's initialisation is given.
pub struct CoreContext<M> {
    /// This core, from 0.
    pub core: usize,
    /// How many there are.
    pub cores: usize,
    /// Tasks, timers, pollers.
    pub handle: Rc<Handle>,
    /// Messages.
    pub mesh: MeshHandle<M>,
    /// Where the thread runs.
    pub placement: Placement,
}

/// What a core's initialisation answers: the future that winds the core down.
pub type WindDown = LocalBoxFuture<'static, ()>;

/// Why a core's initialisation failed.
pub type InitError = Box<dyn std::error::Error + Send + Sync>;

const RUN: u8 = 0;
const STOP: u8 = 1;
const STOP_NOW: u8 = 2;

/// What all cores and their owner share.
struct Control {
    state: AtomicU8,
    /// Cores that have not wound down yet.
    left: AtomicUsize,
    doorbells: Vec<Arc<Doorbell>>,
    faults: Mutex<Vec<CoreError>>,
    on_fault: Option<FaultHook>,
}

impl Control {
    fn request(&self, state: u8) {
        self.state.fetch_max(state, Ordering::AcqRel);
        self.ring_all();
    }

    fn ring_all(&self) {
        for doorbell in &self.doorbells {
            doorbell.ring_always();
        }
    }

    fn fault(&self, core: usize, fault: ReactorFault) {
        if let Some(hook) = &self.on_fault {
            hook(core, &fault);
        }
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        faults.push(CoreError::Fault { core, fault });
        drop(faults);
        self.request(STOP_NOW);
    }
}

struct Started {
    placement: Placement,
    stats: Arc<ReactorStats>,
}

/// Running cores. Dropping it stops them at once and waits for their threads.
pub struct Cores<M> {
    control: Arc<Control>,
    threads: Vec<JoinHandle<()>>,
    started: Vec<Started>,
    ports: Vec<ControlPort<M>>,
}

impl<M: Send + 'static> Cores<M> {
    /// Starts the cores and waits until `init` has answered on each.
    ///
    /// # Errors
    /// Every core's failure; the others have been stopped then.
    pub fn start<F>(config: &CoresConfig, init: F) -> Result<Self, Vec<CoreError>>
    where
        F: Fn(CoreContext<M>) -> Result<WindDown, InitError> + Send + Sync + 'static,
    {
        let (seats, ports) = mesh(config.cores, config.ports, config.ring_capacity)
            .map_err(|error| vec![CoreError::Config(error.to_string())])?;
        let control = Arc::new(Control {
            state: AtomicU8::new(RUN),
            left: AtomicUsize::new(config.cores),
            doorbells: seats.iter().map(MeshSeat::doorbell).collect(),
            faults: Mutex::default(),
            on_fault: config.on_fault.clone(),
        });
        let mut cores = Self { control, threads: Vec::new(), started: Vec::new(), ports };
        let init: Arc<Init<M>> = Arc::new(init);
        let mut errors = Vec::new();
        let mut answers = Vec::new();
        let cpus = if config.cpus.is_empty() { host::allowed_cpus() } else { config.cpus.clone() };
        for seat in seats {
            match cores.start_core(config, &cpus, seat, &init) {
                Ok(answer) => answers.push(answer),
                Err(error) => errors.push(error),
            }
        }
        for (core, answer) in answers {
            match answer.recv() {
                Ok(Ok(started)) => cores.started.push(started),
                Ok(Err(error)) => errors.push(error),
                // Its thread ended without an answer: it panicked, or the host gave up.
                Err(_) => errors.push(CoreError::Init {
                    core,
                    message: "the core's thread ended before it was initialised".to_owned(),
                }),
            }
        }
        if errors.is_empty() { Ok(cores) } else { Err(errors) }
    }

    fn start_core(
        &mut self,
        config: &CoresConfig,
        cpus: &[usize],
        seat: MeshSeat<M>,
        init: &Arc<Init<M>>,
    ) -> Result<(usize, Receiver<Result<Started, CoreError>>), CoreError> {
        let core = seat.core();
        let cpu = (!cpus.is_empty()).then(|| cpus[core % cpus.len()]);
        let mut reactor = config.reactor.clone();
        reactor.seed = reactor.seed.wrapping_add(core as u64);
        if config.cores > cpus.len() && reactor.idle != IdlePolicy::PollForever {
            // Polling would only keep the neighbour from doing what this core waits for.
            reactor.idle = IdlePolicy::Window { ns: 0 };
        }
        let (answer, answered) = sync_channel(1);
        let build = CoreBuild {
            core,
            cores: config.cores,
            reactor,
            seat,
            init: init.clone(),
            control: self.control.clone(),
        };
        let thread = config
            .host
            .start(
                format!("core-{core}"),
                cpu.filter(|_| config.pin),
                Box::new(move |placement| build.build(placement, &answer)),
            )
            .map_err(|message| CoreError::Host { core, host: config.host.name(), message })?;
        self.threads.push(thread);
        Ok((core, answered))
    }

    /// Takes one of the control ports.
    pub fn take_port(&mut self) -> Option<ControlPort<M>> {
        if self.ports.is_empty() { None } else { Some(self.ports.remove(0)) }
    }
}

impl<M> Cores<M> {
    /// Where each core's thread runs.
    pub fn placements(&self) -> impl Iterator<Item = &Placement> {
        self.started.iter().map(|started| &started.placement)
    }

    /// The counters of each core.
    pub fn stats(&self) -> impl Iterator<Item = &Arc<ReactorStats>> {
        self.started.iter().map(|started| &started.stats)
    }

    /// Asks all cores to wind down and end.
    pub fn stop(&self) {
        self.control.request(STOP);
    }

    /// Asks all cores to end after the turn they are in. Their tasks are dropped.
    pub fn stop_now(&self) {
        self.control.request(STOP_NOW);
    }

    /// Whether a core has faulted: then all cores end.
    #[must_use]
    pub fn has_faulted(&self) -> bool {
        !self.control.faults.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Waits until all cores have ended, which needs [`Cores::stop`] or a fault.
    ///
    /// # Errors
    /// What made cores end by themselves.
    pub fn join(mut self) -> Result<(), Vec<CoreError>> {
        self.join_threads();
        let mut faults = self.control.faults.lock().unwrap_or_else(PoisonError::into_inner);
        let faults = std::mem::take(&mut *faults);
        if faults.is_empty() { Ok(()) } else { Err(faults) }
    }

    fn join_threads(&mut self) {
        for thread in self.threads.drain(..) {
            // The panics of a core are caught and recorded; one of the host's own is recorded here.
            if let Err(payload) = thread.join() {
                let fault = ReactorFault::Panicked { message: panic_message(&*payload) };
                self.control.fault(usize::MAX, fault);
            }
        }
    }
}

impl<M> Drop for Cores<M> {
    fn drop(&mut self) {
        self.stop_now();
        self.join_threads();
    }
}

type Init<M> = dyn Fn(CoreContext<M>) -> Result<WindDown, InitError> + Send + Sync;

/// What a core is made of, on its way to its thread.
struct CoreBuild<M> {
    core: usize,
    cores: usize,
    reactor: ReactorConfig,
    seat: MeshSeat<M>,
    init: Arc<Init<M>>,
    control: Arc<Control>,
}

impl<M: 'static> CoreBuild<M> {
    fn build(
        self,
        placement: Placement,
        answer: &SyncSender<Result<Started, CoreError>>,
    ) -> Option<Box<dyn Driven>> {
        let core = self.core;
        let result = catch_unwind(AssertUnwindSafe(|| self.initialise(placement)))
            .unwrap_or_else(|payload| Err(panic_message(&*payload)));
        let (driver, started) = match result {
            Ok((driver, started)) => (Some(driver), Ok(started)),
            Err(message) => (None, Err(CoreError::Init { core, message })),
        };
        // The starter waits for exactly this.
        let _ = answer.send(started);
        driver.map(|driver| Box::new(driver) as Box<dyn Driven>)
    }

    fn initialise(self, placement: Placement) -> Result<(CoreDriver, Started), String> {
        let reactor = Reactor::new(&self.reactor, self.seat.doorbell());
        let handle = reactor.handle();
        let mesh = self.seat.bind(&handle).map_err(|error| error.to_string())?;
        let started = Started { placement: placement.clone(), stats: handle.stats() };
        let (core, cores) = (self.core, self.cores);
        let closing = mesh.clone();
        let context = CoreContext { core, cores, handle: handle.clone(), mesh, placement };
        let wind_down = (self.init)(context).map_err(|error| error.to_string())?;
        let driver = CoreDriver {
            core,
            close_mesh: Some(Box::new(move || closing.close())),
            reactor,
            handle,
            control: self.control,
            wind_down: Some(wind_down),
        };
        Ok((driver, started))
    }
}

/// A core on its thread.
struct CoreDriver {
    core: usize,
    close_mesh: Option<Box<dyn FnOnce()>>,
    reactor: Reactor,
    handle: Rc<Handle>,
    control: Arc<Control>,
    wind_down: Option<WindDown>,
}

impl CoreDriver {
    fn advance(&mut self) -> Result<bool, ReactorFault> {
        match self.control.state.load(Ordering::Acquire) {
            RUN => {}
            STOP => {
                if let Some(wind_down) = self.wind_down.take() {
                    let control = self.control.clone();
                    self.handle.spawn(
                        "wind down",
                        Box::pin(async move {
                            wind_down.await;
                            control.left.fetch_sub(1, Ordering::AcqRel);
                            control.ring_all();
                        }),
                    );
                }
                if self.control.left.load(Ordering::Acquire) == 0 {
                    return Ok(false);
                }
            }
            _ => return Ok(false),
        }
        self.reactor.turn()?;
        self.reactor.rest()?;
        Ok(true)
    }
}

impl Drop for CoreDriver {
    fn drop(&mut self) {
        // Before the reactor goes: the inbox may hold what holds the mesh.
        if let Some(close) = self.close_mesh.take() {
            close();
        }
    }
}

impl Driven for CoreDriver {
    fn step(&mut self) -> bool {
        let outcome = catch_unwind(AssertUnwindSafe(|| self.advance())).unwrap_or_else(|payload| {
            Err(ReactorFault::Panicked { message: panic_message(&*payload) })
        });
        outcome.unwrap_or_else(|fault| {
            self.control.fault(self.core, fault);
            false
        })
    }
}
