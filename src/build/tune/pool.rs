//! Several workers for one search: candidates are compiled and checked side by side, and raced when nobody else runs.

use crate::{
    build::engine::worker::{Leash, Request, Seat, Token, Toolchain, WorkerError},
    protocol::{Done, Failure},
};
use std::{
    sync::{Mutex, PoisonError, mpsc},
    thread,
};

/// How one request ended. The outer error is about having a worker, the inner one about the action.
pub type Reply = Result<Result<Done, Failure>, WorkerError>;

struct Job {
    index: usize,
    request: Request,
    reply: mpsc::Sender<(usize, Reply)>,
}

/// Workers that are asked together. They are started when they are first asked.
pub struct Pool {
    jobs: mpsc::Sender<Job>,
}

/// Calls `act` with a pool of `workers` workers, which end with it. Revoking `token` ends what they do.
pub fn with<T>(
    (toolchain, leash): (&Toolchain, &Leash),
    token: &Token,
    workers: usize,
    act: impl FnOnce(&Pool) -> T,
) -> T {
    let (jobs, receiver) = mpsc::channel::<Job>();
    let receiver = Mutex::new(receiver);
    thread::scope(|scope| {
        for _ in 0..workers.max(1) {
            // A seat's worker dies with the thread that started it, so each thread has one.
            scope.spawn(|| {
                let mut seat = Seat::new(toolchain, leash);
                loop {
                    let job = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(Job { index, request, reply }) = job else { return };
                    // Who asked may have given up on an earlier reply.
                    let _ = reply.send((index, seat.execute_revocably(&request, token)));
                }
            });
        }
        let pool = Pool { jobs };
        act(&pool)
    })
}

impl Pool {
    /// Has all of these done, by as many workers as there are, and returns how each ended, in order.
    pub fn all(&self, requests: Vec<Request>) -> Vec<Reply> {
        let (reply, replies) = mpsc::channel();
        let count = requests.len();
        for (index, request) in requests.into_iter().enumerate() {
            // The threads live as long as the pool.
            let _ = self.jobs.send(Job { index, request, reply: reply.clone() });
        }
        drop(reply);
        let mut all: Vec<Option<Reply>> = (0..count).map(|_| None).collect();
        for (index, reply) in replies {
            all[index] = Some(reply);
        }
        all.into_iter().map(|it| it.unwrap_or(Err(WorkerError::Interrupted))).collect()
    }

    pub fn one(&self, request: Request) -> Reply {
        self.all(vec![request]).pop().unwrap_or(Err(WorkerError::Interrupted))
    }
}
