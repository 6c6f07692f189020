//! Whole sets of cores on threads of their own: starting, talking, sleeping, stopping, failing. Nothing
//! is timed: what must happen is waited for, and the bounded counts of waits end a test that hangs.
#![cfg(not(loom))]
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use engine_base::runtime::Runtime;
use engine_shard::cores::WindDown;
use engine_shard::host::{BuildDriven, Driven, Host, Placement, ThreadHost};
use engine_shard::{
    CoreContext, CoreError, Cores, CoresConfig, Endpoint, IdlePolicy, PortReceiver, ReactorConfig,
    ReactorFault, SendError,
};

/// Gives up after so many waits of 10 ms at most without an answer: a hang, however slow the machine.
const WAITS_MAX: usize = 6000;
const WAIT_NS: u64 = 10_000_000;

#[derive(Debug, PartialEq, Eq)]
enum Message {
    /// To be answered to the port, by way of `left` more cores.
    Ask {
        port: usize,
        id: u64,
        left: usize,
    },
    Answer {
        id: u64,
        hops: usize,
    },
}

fn done() -> WindDown {
    Box::pin(async {})
}

/// Passes requests on to the next core, waiting for room, and answers from the last.
fn relay(context: CoreContext<Message>) -> WindDown {
    let CoreContext { core, cores, handle, mesh, .. } = context;
    let inbox_mesh = mesh.clone();
    mesh.set_inbox(Rc::new(move |_from: Endpoint, message: Message| {
        let Message::Ask { port, id, left } = message else { panic!("cores are asked only") };
        let (to, message) = if left == 0 {
            (Endpoint::Port(port), Message::Answer { id, hops: core })
        } else {
            (Endpoint::Core((core + 1) % cores), Message::Ask { port, id, left: left - 1 })
        };
        match inbox_mesh.try_send(to, message) {
            Ok(()) | Err(SendError::Closed(_)) => {}
            Err(SendError::Full(message)) => {
                let mesh = inbox_mesh.clone();
                handle.spawn(
                    "relay",
                    Box::pin(async move {
                        // Closed: the test is over for the asker.
                        let _ = mesh.send(to, message).await;
                    }),
                );
            }
        }
    }));
    done()
}

fn config(cores: usize, idle: IdlePolicy) -> CoresConfig {
    CoresConfig {
        cores,
        ring_capacity: 4,
        reactor: ReactorConfig { idle, ..Default::default() },
        ..Default::default()
    }
}

fn receive_all(receiver: &mut PortReceiver<Message>, count: usize) -> HashMap<u64, usize> {
    let mut answers = HashMap::new();
    let mut waits = 0;
    while answers.len() < count {
        let taken = receiver.receive(64, |_core, message| {
            let Message::Answer { id, hops } = message else { panic!("ports are answered only") };
            assert_eq!(answers.insert(id, hops), None, "answer {id} came twice");
        });
        if taken > 0 {
            waits = 0;
        } else {
            receiver.wait(Some(WAIT_NS)).unwrap();
            waits += 1;
            assert!(waits < WAITS_MAX, "{} of {count} answers and no more", answers.len());
        }
    }
    answers
}

/// Requests of several threads through one port, round all cores, with rings so small that everything
/// waits for everything.
fn ask_around(cores_count: usize, idle: IdlePolicy, count: u64) {
    let mut cores = Cores::start(&config(cores_count, idle), |context| Ok(relay(context))).unwrap();
    let (sender, mut receiver) = cores.take_port().unwrap().split();
    assert!(cores.take_port().is_none());
    let threads: Vec<_> = (0..2)
        .map(|thread| {
            let sender = sender.clone();
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                runtime.block_on(async move {
                    for id in (thread..count).step_by(2) {
                        let port = sender.number();
                        let ask = Message::Ask { port, id, left: 2 };
                        sender.send(id as usize % sender.cores(), ask).await.unwrap();
                    }
                });
            })
        })
        .collect();
    let answers = receive_all(&mut receiver, count as usize);
    for thread in threads {
        thread.join().unwrap();
    }
    for (id, hops) in answers {
        assert_eq!(hops, (id as usize + 2) % cores_count);
    }
    let messages: u64 = cores.stats().map(|stats| stats.snapshot().messages_in).sum();
    assert_eq!(messages, 3 * count);
    cores.stop();
    cores.join().unwrap();
    assert!(receiver.is_closed());
    let ask = Message::Ask { port: 0, id: 0, left: 0 };
    assert!(matches!(sender.try_send(0, ask), Err(SendError::Closed(_))));
}

#[test]
fn requests_are_answered_by_cores_that_sleep_at_once() {
    ask_around(2, IdlePolicy::Window { ns: 0 }, 6000);
}

#[test]
fn requests_are_answered_by_cores_that_poll_for_a_while() {
    ask_around(2, IdlePolicy::Window { ns: 5_000 }, 6000);
}

#[test]
fn requests_are_answered_by_one_core() {
    ask_around(1, IdlePolicy::default(), 3000);
}

#[test]
fn requests_are_answered_by_more_cores_than_cpus() {
    ask_around(7, IdlePolicy::default(), 3000);
}

/// One request at a time, so that every hop finds its receiver asleep or falling asleep.
#[test]
fn no_message_is_lost_between_check_and_sleep() {
    let config = config(2, IdlePolicy::Window { ns: 0 });
    let mut cores = Cores::start(&config, |context| Ok(relay(context))).unwrap();
    let (sender, mut receiver) = cores.take_port().unwrap().split();
    for id in 0..3000 {
        let ask = Message::Ask { port: 0, id, left: id as usize % 4 };
        sender.try_send(id as usize % 2, ask).unwrap();
        receive_all(&mut receiver, 1);
    }
    let sleeps: u64 = cores.stats().map(|stats| stats.snapshot().sleeps).sum();
    assert!(sleeps > 0, "the test is about sleeping cores");
    cores.stop();
    cores.join().unwrap();
}

#[test]
fn cores_stop_while_they_are_busy() {
    let config = config(3, IdlePolicy::default());
    let cores = Cores::<Message>::start(&config, |context| {
        for _ in 0..10 {
            let handle = context.handle.clone();
            context.handle.spawn(
                "never idle",
                Box::pin(async move {
                    loop {
                        handle.yield_now().await;
                    }
                }),
            );
        }
        Ok(done())
    })
    .unwrap();
    for stats in cores.stats() {
        let mut checks = 0;
        while stats.snapshot().turns < 100 {
            std::thread::yield_now();
            checks += 1;
            assert!(checks < 100_000_000);
        }
    }
    cores.stop();
    cores.join().unwrap();
}

#[test]
fn all_cores_answer_until_all_have_wound_down() {
    let wound_down = Arc::new(AtomicUsize::new(0));
    let count = wound_down.clone();
    let cores = Cores::<u64>::start(&config(3, IdlePolicy::default()), move |context| {
        // Winding down, each core asks every other one and waits for the answers: 0 asks, 1 answers.
        let CoreContext { core, cores, handle, mesh, .. } = context;
        let answers = Rc::new(std::cell::Cell::new(0));
        let (inbox_mesh, inbox_answers) = (mesh.clone(), answers.clone());
        mesh.set_inbox(Rc::new(move |from, message| match message {
            0 => inbox_mesh.try_send(from, 1).unwrap(),
            _ => inbox_answers.set(inbox_answers.get() + 1),
        }));
        let count = count.clone();
        Ok(Box::pin(async move {
            // The later cores begin long after the first is done with its own part.
            handle.sleep(core as u64 * 5_000_000).await;
            for other in 0..cores {
                mesh.send(Endpoint::Core(other), 0).await.unwrap();
            }
            while answers.get() < cores {
                handle.yield_now().await;
            }
            count.fetch_add(1, Ordering::Relaxed);
        }) as WindDown)
    })
    .unwrap();
    cores.stop();
    cores.join().unwrap();
    assert_eq!(wound_down.load(Ordering::Relaxed), 3);
}

#[test]
fn a_wind_down_that_hangs_is_cut_short() {
    let cores = Cores::<u64>::start(&config(2, IdlePolicy::default()), |_context| {
        Ok(Box::pin(std::future::pending()) as WindDown)
    })
    .unwrap();
    cores.stop();
    cores.stop_now();
    cores.join().unwrap();
}

#[test]
fn a_panic_on_one_core_ends_all_and_is_reported() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let hook_told = told.clone();
    let config = CoresConfig {
        on_fault: Some(Arc::new(move |core, fault| {
            hook_told.lock().unwrap().push((core, fault.clone()));
        })),
        ..config(3, IdlePolicy::default())
    };
    let cores = Cores::<u64>::start(&config, |context| {
        if context.core == 1 {
            context.handle.spawn("breaks", Box::pin(async { panic!("broken") }));
        }
        Ok(done())
    })
    .unwrap();
    let errors = cores.join().unwrap_err();
    let fault = ReactorFault::TaskPanicked { task: "breaks", message: "broken".to_owned() };
    assert!(
        matches!(&errors[..], [CoreError::Fault { core: 1, fault: found }] if *found == fault),
        "{errors:?}"
    );
    assert_eq!(*told.lock().unwrap(), [(1, fault)]);
}

#[test]
fn a_core_that_cannot_be_initialised_stops_the_start() {
    let alive = Arc::new(());
    let held = alive.clone();
    let result = Cores::<u64>::start(&config(3, IdlePolicy::default()), move |context| {
        let held = held.clone();
        match context.core {
            1 => Err("no device".into()),
            2 => panic!("cannot be"),
            _ => Ok(Box::pin(async move { drop(held) }) as WindDown),
        }
    });
    let errors: Vec<String> = result.err().unwrap().iter().map(ToString::to_string).collect();
    let expected =
        ["core 1 was not initialised: no device", "core 2 was not initialised: cannot be"];
    assert_eq!(errors, expected);
    assert_eq!(Arc::strong_count(&alive), 1, "nothing of the other cores is left");
}

#[test]
fn a_cpu_that_is_not_there_is_reported_and_not_fatal() {
    let config = CoresConfig { cpus: vec![1000, 5000], ..config(2, IdlePolicy::default()) };
    let cores = Cores::<u64>::start(&config, |_| Ok(done())).unwrap();
    for placement in cores.placements() {
        assert!(matches!(placement, Placement::Floating { refused: Some(_) }), "{placement:?}");
    }
    cores.stop();
    cores.join().unwrap();
}

#[test]
fn a_host_that_refuses_is_named() {
    struct Refuses;
    impl Host for Refuses {
        fn name(&self) -> &'static str {
            "refuses"
        }
        fn start(
            &self,
            thread: String,
            cpu: Option<usize>,
            build: BuildDriven,
        ) -> Result<std::thread::JoinHandle<()>, String> {
            if thread == "core-1" {
                return Err("not today".to_owned());
            }
            ThreadHost.start(thread, cpu, build)
        }
    }
    let config = CoresConfig { host: Arc::new(Refuses), ..config(2, IdlePolicy::default()) };
    let errors = Cores::<u64>::start(&config, |_| Ok(done())).err().unwrap();
    let text = "core 1 cannot be started on host refuses: not today";
    assert_eq!(errors.iter().map(ToString::to_string).collect::<Vec<_>>(), [text]);
}

#[test]
fn a_host_drives_until_the_end() {
    struct Steps(usize);
    impl Driven for Steps {
        fn step(&mut self) -> bool {
            self.0 -= 1;
            self.0 > 0
        }
    }
    let build: BuildDriven = Box::new(|_| Some(Box::new(Steps(5))));
    ThreadHost.start("steps".to_owned(), None, build).unwrap().join().unwrap();
}

/// The way a tokio task is meant to drive a port.
#[cfg(feature = "tokio")]
#[test]
fn tokio_awaits_a_port() {
    let config = config(2, IdlePolicy::Window { ns: 0 });
    let mut cores = Cores::start(&config, |context| Ok(relay(context))).unwrap();
    let (sender, receiver) = cores.take_port().unwrap().split();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let cores = runtime.block_on(async move {
        use engine_shard::port_tokio::AsyncPortReceiver;
        type Calls = Arc<Mutex<HashMap<u64, tokio::sync::oneshot::Sender<usize>>>>;
        let calls = Calls::default();
        let completions = calls.clone();
        let mut receiver = AsyncPortReceiver::new(receiver).unwrap();
        let driver = tokio::spawn(async move {
            let mut answer = |_core: usize, message: Message| {
                let Message::Answer { id, hops } = message else { panic!("answers only") };
                let call = completions.lock().unwrap().remove(&id).unwrap();
                call.send(hops).unwrap();
            };
            while receiver.receive(64, &mut answer).await.unwrap() > 0 {}
        });
        let tasks: Vec<_> = (0..500u64)
            .map(|id| {
                let (sender, calls) = (sender.clone(), calls.clone());
                tokio::spawn(async move {
                    let (call, answer) = tokio::sync::oneshot::channel();
                    calls.lock().unwrap().insert(id, call);
                    let ask = Message::Ask { port: sender.number(), id, left: 1 };
                    sender.send(id as usize % 2, ask).await.unwrap();
                    assert_eq!(answer.await.unwrap(), (id as usize + 1) % 2);
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        // The end of the cores ends the driver.
        cores.stop();
        driver.await.unwrap();
        cores
    });
    cores.join().unwrap();
}

#[cfg(feature = "glommio")]
#[test]
fn glommio_hosts_cores_that_sleep_and_stop() {
    let config = CoresConfig {
        host: Arc::new(engine_shard::host::GlommioHost),
        ..config(2, IdlePolicy::Window { ns: 0 })
    };
    let mut cores = Cores::start(&config, |context| Ok(relay(context))).unwrap();
    let (sender, mut receiver) = cores.take_port().unwrap().split();
    for id in 0..1000 {
        sender.try_send(id as usize % 2, Message::Ask { port: 0, id, left: 3 }).unwrap();
        receive_all(&mut receiver, 1);
    }
    cores.stop();
    cores.join().unwrap();
}
