//! The kernel's tables of rules, written so that what stays as it is is not touched.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnet::IpNet;
use worker_common::{Entry, PortRule};

use crate::steer::kernel::{Kernel, KernelError};
use crate::steer::rules::used;

/// What the kernel has by our own calls, call by call: also after one that failed.
pub(super) struct Table {
    kernel: Arc<dyn Kernel>,
    has: Mutex<HashMap<IpNet, Held>>,
}

/// An [`Entry`] without its unused places: there may be a hundred thousand.
struct Held {
    default: u32,
    ranges: Box<[PortRule]>,
}

impl Table {
    /// The tables of a kernel that has no rules yet.
    pub(super) fn new(kernel: Arc<dyn Kernel>) -> Table {
        Table { kernel, has: Mutex::default() }
    }

    /// Makes or replaces an entry. False: it was there already.
    pub(super) fn put(&self, net: IpNet, entry: &Entry) -> Result<bool, KernelError> {
        let mut has = self.has();
        let same = |held: &Held| held.default == entry.default && *held.ranges == *used(entry);
        if has.get(&net).is_some_and(same) {
            return Ok(false);
        }
        self.kernel.put_rules(net, entry)?;
        has.insert(net, Held { default: entry.default, ranges: used(entry).into() });
        Ok(true)
    }

    /// How many entries of each family there are.
    pub(super) fn count(&self) -> [usize; 2] {
        let has = self.has();
        let v6 = has.keys().filter(|net| matches!(net, IpNet::V6(_))).count();
        [has.len() - v6, v6]
    }

    /// Removes all entries but these, the shortest prefixes first; returns how many that were.
    pub(super) fn keep(&self, wanted: &HashSet<IpNet>) -> Result<usize, KernelError> {
        let mut has = self.has();
        let mut surplus: Vec<IpNet> = has.keys().filter(|net| !wanted.contains(net)).copied().collect();
        surplus.sort_unstable_by_key(IpNet::prefix_len);
        for net in &surplus {
            self.kernel.remove_rules(*net)?;
            has.remove(net);
        }
        Ok(surplus.len())
    }

    // A panic between the two leaves an entry out that the kernel has: it is written once more, or its address
    // refused until the next change.
    fn has(&self) -> MutexGuard<'_, HashMap<IpNet, Held>> {
        self.has.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
