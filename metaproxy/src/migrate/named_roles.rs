//! Maps roles among the flags. A role that the agent would refuse at its start is refused here, with advice, and so
//! is a name that kiam completed to another role.

use std::str::FromStr;

use super::MigrateError;
use super::words::{Flag, unfilled};
use crate::roles::arn::RoleError;
use crate::roles::{BaseArn, RoleArn, WrittenRole, placeholder};

/// Maps the prefix of names. `None` if it is empty, which is what charts write for an unset value.
///
/// # Errors
/// If it is not a prefix of role ARNs.
pub fn base(flag: &Flag) -> Result<Option<&str>, MigrateError> {
    checked::<BaseArn>(flag)
}

/// Maps kiam's prefix of names. kiam appended the name without a separator (`pkg/aws/sts/arn_resolver.go`).
///
/// # Errors
/// If it is not a prefix of role ARNs, or names after it become other roles in metaproxy.
pub fn base_of_kiam(flag: &Flag) -> Result<Option<&str>, MigrateError> {
    let base = base(flag)?;
    let part_of_names = base
        .and_then(|base| base.split_once(":role/")?.1.rsplit('/').next())
        .filter(|part| !part.is_empty());
    match (base, part_of_names) {
        (Some(base), Some(part)) => Err(MigrateError::Value {
            flag: flag.shown(),
            problem: format!(
                "kiam puts the name of a role right behind it, and metaproxy a slash between the two, so `{part}` would not be \
                 a part of names any more. Write {} in its place, and the names of roles in full ({part}NAME) in the pods' \
                 annotations",
                &base[..base.len() - part.len()]
            ),
        }),
        _ => Ok(base),
    }
}

/// Maps a role, by its ARN or its name; `None` if it is empty.
///
/// # Errors
/// If it is not a role.
pub fn role(flag: &Flag) -> Result<Option<&str>, MigrateError> {
    checked::<WrittenRole>(flag)
}

/// Returns the ARN of the role of kiam's server. kiam completed a name by its prefix (uswitch/kiam#276).
///
/// # Errors
/// If it is not a role, or a name has no prefix.
pub fn of_server(flag: &Flag, base: Option<&str>) -> Result<Option<String>, MigrateError> {
    let Some(written) = role(flag)? else {
        return Ok(None);
    };
    let completed = match base {
        _ if written.parse::<RoleArn>().is_ok() => written.to_owned(),
        Some(base) => format!("{base}{}", written.trim_start_matches('/')),
        None => {
            return Err(MigrateError::Missing {
                flag: flag.shown(),
                missing: format!(
                    "it is a name, and arn:aws:iam::ACCOUNT:role/{} takes the account of kiam's node, which no manifest tells",
                    written.trim_start_matches('/')
                ),
            });
        }
    };
    match completed.parse::<RoleArn>() {
        Ok(_) => Ok(Some(completed)),
        Err(error) => Err(value(flag, &error)),
    }
}

fn checked<T: FromStr<Err = RoleError>>(flag: &Flag) -> Result<Option<&str>, MigrateError> {
    let written = flag.known()?;
    if written.is_empty() {
        return Ok(None);
    }
    if let Some(found) = placeholder(written) {
        return Err(MigrateError::Missing {
            flag: flag.shown(),
            missing: unfilled(found),
        });
    }
    let parsed = written.parse::<T>();
    parsed.map(|_| Some(written)).map_err(|error| value(flag, &error))
}

fn value(flag: &Flag, error: &RoleError) -> MigrateError {
    MigrateError::Value {
        flag: flag.shown(),
        problem: error.to_string(),
    }
}
