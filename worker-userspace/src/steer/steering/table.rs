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

impl Held {
    fn of(entry: &Entry) -> Held {
        Held { default: entry.default, ranges: used(entry).into() }
    }
}

impl Table {
    /// The tables of a kernel as they are: a daemon before this one may have left rules. Those of `apart` are none of
    /// ours here.
    pub(super) fn new(kernel: Arc<dyn Kernel>, apart: &[IpNet]) -> Result<Table, KernelError> {
        let table = Table { kernel, has: Mutex::default() };
        table.look(apart)?;
        Ok(table)
    }

    /// Looks again at what the kernel has: another daemon has changed it. Where that can't be seen nothing counts as being
    /// there, so that all is written again.
    pub(super) fn look(&self, apart: &[IpNet]) -> Result<(), KernelError> {
        let mut has = self.has();
        has.clear();
        let found = self.kernel.rules()?.into_iter().filter(|(net, _)| !apart.contains(net));
        *has = found.map(|(net, entry)| (net, Held::of(&entry))).collect();
        Ok(())
    }

    /// The highest number of a rule that is there.
    pub(super) fn highest(&self) -> u32 {
        let has = self.has();
        has.values().flat_map(|held| &held.ranges).map(|range| range.rule).max().unwrap_or(0)
    }

    /// Makes or replaces an entry. False: it was there already.
    pub(super) fn put(&self, net: IpNet, entry: &Entry) -> Result<bool, KernelError> {
        let mut has = self.has();
        let same = |held: &Held| held.default == entry.default && *held.ranges == *used(entry);
        if has.get(&net).is_some_and(same) {
            return Ok(false);
        }
        self.kernel.put_rules(net, entry)?;
        has.insert(net, Held::of(entry));
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
