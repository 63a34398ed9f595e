//! What a configuration asks of this host as it is: its cgroups, its users, and networks that nobody else uses.

use std::path::Path;

use super::{SteerError, Steering};
use crate::config::{Steer, User};
use crate::steer::names::{NamesError, Prefixes, check_file, check_overlap, file_in};
use crate::steer::scope::{Found, Scope};

impl Steering {
    /// What of this host as it is keeps a start from steering, as far as it can be looked at.
    pub fn unfit(config: &Steer, state_dir: &Path) -> Vec<SteerError> {
        let prefixes = prefixes(config).and_then(|prefixes| {
            check_file(&file_in(state_dir), prefixes).map_err(|error| NamesError::from(error).into())
        });
        [captured(config).err(), users(config).err(), prefixes.err()].into_iter().flatten().collect()
    }
}

/// Where is captured, and what of it is there.
pub(super) fn captured(config: &Steer) -> Result<(Scope, Found), SteerError> {
    let scope = Scope::new(&config.cgroups, &config.exclude_cgroups)?;
    let found = scope.find(true)?;
    Ok((scope, found))
}

/// Who is left out.
pub(super) fn users(config: &Steer) -> Result<Vec<u32>, SteerError> {
    config.exclude_users.iter().map(user).collect()
}

/// The networks whose addresses stand for names, which nobody else uses.
pub(super) fn prefixes(config: &Steer) -> Result<Prefixes, SteerError> {
    let prefixes = Prefixes::new(config.synthetic4, config.synthetic6)?;
    check_overlap(&prefixes)?;
    Ok(prefixes)
}

/// The number of a user that the configuration names.
///
/// # Errors
/// There is none, or nobody knows.
pub fn user(user: &User) -> Result<u32, SteerError> {
    let name = match user {
        User::Id(id) => return Ok(*id),
        User::Name(name) => name,
    };
    match nix::unistd::User::from_name(name) {
        Ok(Some(user)) => Ok(user.uid.as_raw()),
        Ok(None) => Err(SteerError::NoSuchUser { name: name.clone() }),
        Err(errno) => Err(SteerError::Users { name: name.clone(), source: errno.into() }),
    }
}
