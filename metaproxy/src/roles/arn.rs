//! Parses IAM role ARNs, and resolves names to ARNs.
//!
//! Format and limits are those of the IAM user guide, "IAM identifiers" and "IAM and STS character limits":
//! `arn:PARTITION:iam::ACCOUNT:role/PATH/NAME`, name 1 to 64 of `[\w+=,.@-]`, path with its slashes at most 512
//! printable ASCII characters.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use super::placeholder;

/// The reason why a text is not a role.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum RoleError {
    /// The text is empty.
    #[error("it is empty")]
    Empty,
    /// The text begins with `arn:`, and is not the ARN of a role.
    #[error("it is not a role's ARN, which looks like arn:aws:iam::123456789012:role/path/name")]
    NotARoleArn,
    /// The account is malformed.
    #[error("the account of an ARN is 12 digits")]
    Account,
    /// The partition is malformed.
    #[error("the partition of an ARN is aws, aws-cn, aws-us-gov or another that begins with aws")]
    Partition,
    /// The name is malformed.
    #[error("a role's name is 1 to 64 letters, digits and characters of +=,.@_-")]
    Name,
    /// The path is malformed.
    #[error("a role's path is at most 512 printable characters, with no empty part")]
    Path,
    /// The path of a base ARN has a `*`. A role's path may have a `*`, but in a base ARN it is a wildcard that was
    /// copied from a policy.
    #[error(
        "a * in it is not a wildcard but a character of every role's path; end it with role/, or with role/ and a path"
    )]
    Wildcard,
    /// The path of a base ARN has a placeholder.
    #[error("{0:?} in it is a placeholder that was not filled in")]
    Placeholder(String),
}

/// The ARN of a role. `Display` writes `arn:` in lower case, even if the input had capital letters.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RoleArn {
    arn: Box<str>,
    name_at: usize,
}

impl RoleArn {
    /// Returns the ARN as AWS accepts it.
    pub fn as_str(&self) -> &str {
        &self.arn
    }

    /// Returns the role's name without its path, which `security-credentials/` lists.
    pub fn name(&self) -> &str {
        &self.arn[self.name_at..]
    }

    /// Says whether a text names this role. The text may be the role's ARN, or its name after the whole path, a part
    /// of the path or no path.
    pub fn is_called(&self, text: &str) -> bool {
        let before = self.arn.strip_suffix(text);
        let is_path_and_name = before.is_some_and(|before| before.ends_with('/')) && !text.is_empty();
        is_path_and_name || text.parse().is_ok_and(|arn: Self| arn == *self)
    }

    /// Returns the partition, such as `aws` or `aws-cn`.
    pub fn partition(&self) -> &str {
        self.part(1)
    }

    /// Returns the account, which is 12 digits.
    pub fn account(&self) -> &str {
        self.part(4)
    }

    fn part(&self, index: usize) -> &str {
        self.arn.split(':').nth(index).unwrap_or_default()
    }

    fn new(partition: &str, account: &str, path_and_name: &str) -> Result<Self, RoleError> {
        check_partition(partition)?;
        check_account(account)?;
        let (path, name) = path_and_name.rsplit_once('/').unwrap_or(("", path_and_name));
        if !is_name(name) {
            return Err(RoleError::Name);
        }
        check_path(path)?;
        let arn = format!("arn:{partition}:iam::{account}:role/{path_and_name}");
        Ok(Self {
            name_at: arn.len() - name.len(),
            arn: arn.into(),
        })
    }
}

impl FromStr for RoleArn {
    type Err = RoleError;

    fn from_str(text: &str) -> Result<Self, RoleError> {
        let (partition, account, role) = split(text).ok_or(RoleError::NotARoleArn)?;
        Self::new(partition, account, role)
    }
}

impl fmt::Display for RoleArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.arn)
    }
}

impl fmt::Debug for RoleArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.arn)
    }
}

/// Returns the partition, the account, and the text after `role/`. `arn:` may be in any case, as in kube2iam.
fn split(text: &str) -> Option<(&str, &str, &str)> {
    let rest = text.get(4..).filter(|_| is_arn(text))?;
    let mut parts = rest.splitn(5, ':');
    let partition = parts.next()?;
    let (service, region, account, resource) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    (service == "iam" && region.is_empty()).then_some(())?;
    Some((partition, account, resource.strip_prefix("role/")?))
}

fn is_arn(text: &str) -> bool {
    text.get(..4)
        .is_some_and(|prefix| prefix.eq_ignore_ascii_case("arn:"))
}

/// Accepts `aws`, `aws-cn`, `aws-us-gov`, `aws-iso`, `aws-iso-b`, `aws-eusc`, and partitions that AWS may add.
fn check_partition(partition: &str) -> Result<(), RoleError> {
    let rest = partition.strip_prefix("aws").ok_or(RoleError::Partition)?;
    let fits = rest.is_empty()
        || (rest.starts_with('-')
            && rest.len() <= 32
            && rest
                .bytes()
                .all(|byte| byte == b'-' || byte.is_ascii_lowercase() || byte.is_ascii_digit()));
    if fits { Ok(()) } else { Err(RoleError::Partition) }
}

pub(super) fn check_account(account: &str) -> Result<(), RoleError> {
    let fits = account.len() == 12 && account.bytes().all(|byte| byte.is_ascii_digit());
    if fits { Ok(()) } else { Err(RoleError::Account) }
}

/// Says whether a text can be a role's name.
pub fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"+=,.@_-".contains(&byte))
}

fn check_path(path: &str) -> Result<(), RoleError> {
    let fits = path.is_empty()
        || (path.len() <= 510
            && path.split('/').all(|part| !part.is_empty())
            && path.bytes().all(|byte| byte.is_ascii_graphic()));
    if fits { Ok(()) } else { Err(RoleError::Path) }
}

/// The value of `--base-role-arn`: `arn:aws:iam::123456789012:role/`, with or without a path after it. It completes
/// the names of roles to ARNs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseArn {
    partition: String,
    account: String,
    /// The path, which is empty or ends with a slash.
    path: String,
}

impl FromStr for BaseArn {
    type Err = RoleError;

    fn from_str(text: &str) -> Result<Self, RoleError> {
        // kube2iam and kiam accept the base with and without the last slash.
        let slashed = format!("{}/", text.trim_end_matches('/'));
        let (partition, account, path) = split(&slashed).ok_or(RoleError::NotARoleArn)?;
        check_partition(partition)?;
        check_account(account)?;
        check_path(path.trim_end_matches('/'))?;
        // A path may have a `*`, but a base with one would resolve each name to a role that no account has.
        if path.contains('*') {
            return Err(RoleError::Wildcard);
        }
        if let Some(found) = placeholder(path) {
            return Err(RoleError::Placeholder(found.to_owned()));
        }
        Ok(Self {
            partition: partition.to_owned(),
            account: account.to_owned(),
            path: path.to_owned(),
        })
    }
}

impl BaseArn {
    /// Returns the partition, such as `aws` or `aws-cn`.
    pub fn partition(&self) -> &str {
        &self.partition
    }

    /// Returns the account, which is 12 digits.
    pub fn account(&self) -> &str {
        &self.account
    }

    /// Returns the text that is put before a name.
    pub fn prefix(&self) -> String {
        format!("arn:{}:iam::{}:role/{}", self.partition, self.account, self.path)
    }

    /// Returns the base for names in the account of the node's own role, from the ARN of its instance profile
    /// (`iam/info`) or of its session (`GetCallerIdentity`). Returns `None` for any other text.
    pub fn of_account(arn: &str) -> Option<Self> {
        let parts: Vec<&str> = arn.splitn(6, ':').collect();
        let [prefix, partition, "iam" | "sts", "", account, _] = parts[..] else {
            return None;
        };
        (prefix == "arn" && check_partition(partition).is_ok() && check_account(account).is_ok()).then(|| {
            Self {
                partition: partition.to_owned(),
                account: account.to_owned(),
                path: String::new(),
            }
        })
    }
}

/// A role as a user writes it, after its syntax was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WrittenRole {
    /// The whole ARN is given.
    Arn(RoleArn),
    /// A name, `path/name` or `/name` is given. It is kept without the first slash, and needs the base ARN.
    Relative(String),
}

impl FromStr for WrittenRole {
    type Err = RoleError;

    fn from_str(text: &str) -> Result<Self, RoleError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(RoleError::Empty);
        }
        if is_arn(text) {
            return text.parse().map(Self::Arn);
        }
        let relative = text.strip_prefix('/').unwrap_or(text);
        let (path, name) = relative.rsplit_once('/').unwrap_or(("", relative));
        if !is_name(name) {
            return Err(RoleError::Name);
        }
        check_path(path)?;
        Ok(Self::Relative(relative.to_owned()))
    }
}

impl WrittenRole {
    /// Returns the ARN; `None` if it needs a base and the base is not known.
    ///
    /// # Errors
    /// If the path of the base and the written path together are too long.
    pub fn resolve(&self, base: Option<&BaseArn>) -> Result<Option<RoleArn>, RoleError> {
        match (self, base) {
            (Self::Arn(arn), _) => Ok(Some(arn.clone())),
            (Self::Relative(_), None) => Ok(None),
            (Self::Relative(relative), Some(base)) => {
                let resource = format!("{}{relative}", base.path);
                RoleArn::new(&base.partition, &base.account, &resource).map(Some)
            }
        }
    }

    /// Returns the role's name without its path.
    pub fn name(&self) -> &str {
        match self {
            Self::Arn(arn) => arn.name(),
            Self::Relative(relative) => relative.rsplit('/').next().unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests;
