//! Issues and checks session tokens (IMDSv2). Each is bound to the pod that requested it.
//!
//! A token carries its own expiry, and a MAC over the expiry and the pod's UID. So the agent stores nothing for a
//! token, and another instance with the same key accepts it. The key is a file in the runtime directory.
//!
//! A token has 56 characters, like those of EC2. Clients rely on this length: the client of the AWS Common Runtime
//! (aws-c-auth, `aws_imds_client.c`) fails if it gets more than 64. 56 characters of base64 are 42 bytes, and the MAC
//! takes 32 of them: HMAC-SHA-256 is not truncated, and a guess is right once in 2^256. The random part has only 4
//! bytes. Security does not depend on it: it only makes tokens of the same second differ. If room is ever needed, a
//! MAC truncated to 16 bytes (RFC 2104, section 5) is enough too. Pods do not know the key, and each guess costs a
//! request. A right guess gives no more than what the pod itself may have, because the client is identified by its
//! connection.
//!
//! A token of another form, such as that of an earlier version, is refused like an expired one: with 401. Clients
//! then request another token.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use ring::rand::{SecureRandom as _, SystemRandom};
use thiserror::Error;
use tracing::warn;

use crate::pods::PodUid;

/// The maximum lifetime of a token, in seconds. The minimum is 1.
pub const MAX_TTL: u64 = 21_600;

const KEY_FILE: &str = "token.key";
const KEY_LENGTH: usize = 32;

/// The version of the layout of tokens: version, expiry (seconds since 1970, big-endian), random bytes, and a MAC
/// over all of these and the UID. Version 1 was longer.
const VERSION: u8 = 2;
const EXPIRY: usize = 5;
const NONCE: usize = 4;
const BODY: usize = 1 + EXPIRY + NONCE;
const MAC: usize = 32;

/// Why tokens can't be issued.
#[derive(Debug, Error)]
pub enum TokenKeyError {
    /// The directory or the key file cannot be used.
    #[error("--runtime-dir: cannot use {path}: {source}")]
    Io {
        /// The path of the directory or the file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The file is not a token key.
    #[error(
        "--runtime-dir: {path} is no token key ({KEY_LENGTH} bytes are); remove it, and a new one is made"
    )]
    NotAKey {
        /// The path of the file.
        path: PathBuf,
    },
    /// The system gives no random numbers.
    #[error("the system gives no random numbers")]
    Random,
}

/// Issues and checks tokens.
pub struct Tokens {
    key: hmac::Key,
    random: SystemRandom,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tokens")
    }
}

impl Tokens {
    /// Reads the key in the runtime directory, or creates it (mode 0600) if it does not exist. If the file system is
    /// full, the key exists only in this process, and its tokens become invalid when the process ends.
    pub fn open(runtime_dir: &Path) -> Result<Self, TokenKeyError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| TokenKeyError::Io { path, source }
        };
        let path = runtime_dir.join(KEY_FILE);
        let random = SystemRandom::new();
        let key = match read_key(&path) {
            Ok(key) => key,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut key = vec![0; KEY_LENGTH];
                let mut suffix = [0; 8];
                random
                    .fill(&mut key)
                    .and_then(|()| random.fill(&mut suffix))
                    .map_err(|_| TokenKeyError::Random)?;
                match publish_key(&path, &key, suffix).and_then(|()| read_key(&path)) {
                    Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                        warn!(
                            "pods' session tokens will end with this process: cannot write {}: {error}",
                            path.display()
                        );
                        key
                    }
                    result => result.map_err(failed(&path))?,
                }
            }
            Err(error) => return Err(failed(&path)(error)),
        };
        if key.len() != KEY_LENGTH {
            return Err(TokenKeyError::NotAKey { path });
        }
        Ok(Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, &key),
            random,
        })
    }

    /// Issues a token for a pod. `ttl` is its lifetime in seconds, from 1 to [`MAX_TTL`].
    ///
    /// # Errors
    /// Returns an error if the system gives no random numbers.
    pub fn issue(&self, uid: &PodUid, ttl: u64, now: SystemTime) -> Result<String, TokenKeyError> {
        let mut token = Vec::with_capacity(BODY + MAC);
        token.push(VERSION);
        let [.., a, b, c, d, e] = (seconds(now) + ttl).to_be_bytes();
        token.extend([a, b, c, d, e]);
        let mut nonce = [0; NONCE];
        self.random.fill(&mut nonce).map_err(|_| TokenKeyError::Random)?;
        token.extend(nonce);
        token.extend(hmac::sign(&self.key, &signed(&token, uid)).as_ref());
        Ok(URL_SAFE_NO_PAD.encode(token))
    }

    /// Returns the remaining lifetime of a token. Returns `None` if the token was not issued to this pod, or has
    /// expired.
    pub fn check(&self, uid: &PodUid, token: &[u8], now: SystemTime) -> Option<Duration> {
        let token = URL_SAFE_NO_PAD.decode(token).ok()?;
        let (body, mac) = token.split_at_checked(BODY)?;
        hmac::verify(&self.key, &signed(body, uid), mac).ok()?;
        let [VERSION, a, b, c, d, e, ..] = *body else {
            return None;
        };
        let expiry = u64::from_be_bytes([0, 0, 0, a, b, c, d, e]);
        expiry
            .checked_sub(seconds(now))
            .filter(|left| *left > 0)
            .map(Duration::from_secs)
    }
}

fn signed(body: &[u8], uid: &PodUid) -> Vec<u8> {
    [body, uid.as_str().as_bytes()].concat()
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn read_key(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)?;
    // A process that can read the key can make tokens.
    file.set_permissions(Permissions::from_mode(0o600))?;
    let mut key = Vec::with_capacity(KEY_LENGTH);
    Read::take(&mut file, KEY_LENGTH as u64 + 1).read_to_end(&mut key)?;
    Ok(key)
}

/// Writes the key to a temporary file, and then makes a hard link to it at `path`. So the key file is always
/// complete, and never replaces that of another instance.
fn publish_key(path: &Path, key: &[u8], suffix: [u8; 8]) -> io::Result<()> {
    // A process ID is not unique: it is 1 in every container.
    let unique: String = suffix.iter().map(|byte| format!("{byte:02x}")).collect();
    let aside = path.with_extension(format!("{unique}.new"));
    let result = (|| {
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&aside)?
            .write_all(key)?;
        match fs::hard_link(&aside, path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            result => result,
        }
    })();
    let removed = fs::remove_file(&aside);
    result.and(removed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime_dir::make_runtime_dir;
    use proptest::prelude::*;

    fn uid(text: &str) -> PodUid {
        text.parse().unwrap()
    }

    fn tokens() -> (tempfile::TempDir, Tokens) {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        make_runtime_dir(&run).unwrap();
        let tokens = Tokens::open(&run).unwrap();
        (dir, tokens)
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_token_is_valid_for_its_pod_until_it_expires() {
        let (_dir, tokens) = tokens();
        let token = tokens.issue(&uid("a"), 60, at(1000)).unwrap();
        let check = |pod: &str, seconds| tokens.check(&uid(pod), token.as_bytes(), at(seconds));
        assert_eq!(check("a", 1000), Some(Duration::from_secs(60)));
        assert_eq!(check("a", 1059), Some(Duration::from_secs(1)));
        assert_eq!(check("a", 1060), None);
        assert_eq!(check("b", 1000), None, "another pod's");
    }

    #[test]
    fn a_token_is_as_long_as_one_of_ec2_and_unique() {
        let (_dir, tokens) = tokens();
        let now = [at(0), at(1_795_000_000), at((1 << 40) - MAX_TTL - 1)];
        for (now, ttl) in now.into_iter().flat_map(|now| [(now, 1), (now, MAX_TTL)]) {
            let issue = || tokens.issue(&uid("a"), ttl, now).unwrap();
            let (one, other) = (issue(), issue());
            assert_eq!((one.len(), other.len()), (56, 56));
            assert!(
                one.bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
            );
            assert_ne!(one, other);
            assert_eq!(
                tokens.check(&uid("a"), one.as_bytes(), now),
                Some(Duration::from_secs(ttl))
            );
        }
    }

    /// A token of version 1 has 8 bytes of expiry and 8 random ones.
    #[test]
    fn a_token_of_another_form_is_refused_even_with_a_valid_mac() {
        let (_dir, tokens) = tokens();
        let body = [&[1][..], &9000_u64.to_be_bytes(), &[7; 8]].concat();
        let [.., a, b, c, d, e] = 9000_u64.to_be_bytes();
        let other_version = [VERSION + 1, a, b, c, d, e, 7, 7, 7, 7].to_vec();
        for body in [body, other_version] {
            let mac = hmac::sign(&tokens.key, &signed(&body, &uid("a")));
            let token = URL_SAFE_NO_PAD.encode([&body, mac.as_ref()].concat());
            assert_eq!(tokens.check(&uid("a"), token.as_bytes(), at(1000)), None);
        }
    }

    #[test]
    fn tokens_outlive_the_process_and_the_key_is_private() {
        let (dir, first) = tokens();
        let token = first.issue(&uid("a"), 60, at(1000)).unwrap();
        let run = dir.path().join("run");
        let second = Tokens::open(&run).unwrap();
        assert!(second.check(&uid("a"), token.as_bytes(), at(1000)).is_some());
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&run), mode(&run.join(KEY_FILE))), (0o700, 0o600));
        assert_eq!(
            fs::read_dir(&run).unwrap().count(),
            1,
            "nothing is left beside it"
        );
    }

    #[test]
    fn a_file_that_is_no_key_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(KEY_FILE), "short").unwrap();
        let error = Tokens::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("token.key is no token key"), "{error}");
    }

    proptest! {
        #[test]
        fn other_bytes_are_no_valid_token(text in "\\PC{0,100}", flip in 0..56usize) {
            let (_dir, tokens) = tokens();
            prop_assert_eq!(tokens.check(&uid("a"), text.as_bytes(), at(0)), None);
            let mut token = tokens.issue(&uid("a"), 60, at(1000)).unwrap().into_bytes();
            token[flip] = if token[flip] == b'A' { b'B' } else { b'A' };
            prop_assert_eq!(tokens.check(&uid("a"), &token, at(1000)), None);
            token.truncate(flip);
            prop_assert_eq!(tokens.check(&uid("a"), &token, at(1000)), None);
        }
    }
}
