//! What the worker does to itself so that it can neither eat the machine nor outlive the build: an address-space limit for
//! the length of one action, and death with the parent. The wall clock is not watched here: a process that hangs cannot
//! be trusted to notice, so the tool kills it.

use rustix::process::{Resource, Rlimit, Signal, getpid, getrlimit, kill_process, setrlimit};
use std::{fs, io};

/// While it lives, the process may add at most the given number of bytes to its address space. The soft limit alone is
/// lowered, so that dropping this puts the previous one back.
pub struct AddressSpace {
    previous: Rlimit,
}

impl AddressSpace {
    /// Address space, not resident memory: it is the one thing that a process can be made to fail on at once, with an
    /// allocation that returns null, instead of being killed later by the system along with its neighbours.
    pub fn limit(extra: u64) -> io::Result<Self> {
        let previous = getrlimit(Resource::As);
        let wanted = address_space()?.saturating_add(extra);
        let allowed = previous.maximum.map_or(wanted, |hard| hard.min(wanted));
        setrlimit(Resource::As, Rlimit { current: Some(allowed), maximum: previous.maximum })?;
        Ok(Self { previous })
    }
}

impl Drop for AddressSpace {
    fn drop(&mut self) {
        if let Err(error) = setrlimit(Resource::As, self.previous) {
            eprintln!("warning: the address-space limit could not be lifted: {error}");
        }
    }
}

/// Bytes of address space that this process has mapped.
fn address_space() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/self/statm")?;
    let pages = text.split(' ').next().and_then(|it| it.parse::<u64>().ok());
    let pages = pages.ok_or_else(|| io::Error::other("/proc/self/statm does not begin with a number"))?;
    Ok(pages * rustix::param::page_size() as u64)
}

/// Asks the kernel to kill this process when the thread that started it ends, however it ends.
pub fn die_with_parent() -> io::Result<()> {
    Ok(rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?)
}

/// Ends the process without running a destructor or an `atexit` handler: other threads may be in the middle of LLVM.
pub fn die() -> ! {
    loop {
        // A process may always kill itself; the loop is for the type.
        let _ = kill_process(getpid(), Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_lifted_again() {
        let before = getrlimit(Resource::As);
        let limit = AddressSpace::limit(1 << 30).unwrap();
        let during = getrlimit(Resource::As);
        drop(limit);
        assert_eq!(getrlimit(Resource::As), before);
        assert_ne!(during, before);
        assert!(during.current.unwrap() >= address_space().unwrap());
    }
}
