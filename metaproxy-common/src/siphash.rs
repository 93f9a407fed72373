//! Computes SipHash-2-4 over whole words (J.-P. Aumasson, D. J. Bernstein, "SipHash: a fast short-input PRF", 2012).
//!
//! This code is small enough for the kernel's verifier. The standard library's hashers take no key from their caller
//! and are not available in the kernel.

use core::fmt;

/// A key of 128 bits. `Debug` does not show it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Key {
    words: [u64; 2],
}

impl Key {
    /// Takes 16 random bytes as a key.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes;
        Self {
            words: [
                u64::from_le_bytes([a, b, c, d, e, f, g, h]),
                u64::from_le_bytes([i, j, k, l, m, n, o, p]),
            ],
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(redacted)")
    }
}

struct State {
    v0: u64,
    v1: u64,
    v2: u64,
    v3: u64,
}

impl State {
    #[inline(always)]
    fn new(key: &Key) -> Self {
        let [k0, k1] = key.words;
        Self {
            v0: k0 ^ 0x736f_6d65_7073_6575,
            v1: k1 ^ 0x646f_7261_6e64_6f6d,
            v2: k0 ^ 0x6c79_6765_6e65_7261,
            v3: k1 ^ 0x7465_6462_7974_6573,
        }
    }

    #[inline(always)]
    fn round(&mut self) {
        self.v0 = self.v0.wrapping_add(self.v1);
        self.v1 = self.v1.rotate_left(13) ^ self.v0;
        self.v0 = self.v0.rotate_left(32);
        self.v2 = self.v2.wrapping_add(self.v3);
        self.v3 = self.v3.rotate_left(16) ^ self.v2;
        self.v0 = self.v0.wrapping_add(self.v3);
        self.v3 = self.v3.rotate_left(21) ^ self.v0;
        self.v2 = self.v2.wrapping_add(self.v1);
        self.v1 = self.v1.rotate_left(17) ^ self.v2;
        self.v2 = self.v2.rotate_left(32);
    }

    #[inline(always)]
    fn absorb(&mut self, word: u64) {
        self.v3 ^= word;
        self.round();
        self.round();
        self.v0 ^= word;
    }

    #[inline(always)]
    fn finish(mut self) -> u64 {
        self.v2 ^= 0xff;
        self.round();
        self.round();
        self.round();
        self.round();
        self.v0 ^ self.v1 ^ self.v2 ^ self.v3
    }
}

/// Computes SipHash-2-4 of a message of `N` words of eight bytes, each in little-endian order; `N` is at most 31.
#[inline(always)]
pub fn siphash<const N: usize>(key: &Key, message: &[u64; N]) -> u64 {
    let mut state = State::new(key);
    let mut index = 0;
    while index < N {
        state.absorb(message[index]);
        index += 1;
    }
    // The last block holds the length modulo 256 in its highest byte, and the rest of the message, which is empty
    // here.
    state.absorb((N as u64 * 8) << 56);
    state.finish()
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::format;

    const KEY: Key = Key::from_bytes([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);

    /// Returns the bytes 00 01 02 …, as words.
    fn message<const N: usize>() -> [u64; N] {
        let mut byte = 0;
        [(); N].map(|()| {
            let word = [(); 8].map(|()| {
                byte += 1;
                byte - 1
            });
            u64::from_le_bytes(word)
        })
    }

    /// The hashes are `vectors_sip64` of the reference implementation (vectors.h), for the lengths 0, 8, 16, … 56.
    #[test]
    fn hashes_equal_the_published_vectors() {
        assert_eq!(siphash(&KEY, &message::<0>()), 0x726f_db47_dd0e_0e31);
        assert_eq!(siphash(&KEY, &message::<1>()), 0x93f5_f579_9a93_2462);
        assert_eq!(siphash(&KEY, &message::<2>()), 0x3f2a_cc7f_57c2_9bdb);
        assert_eq!(siphash(&KEY, &message::<3>()), 0xb8ad_50c6_f649_af94);
        assert_eq!(siphash(&KEY, &message::<4>()), 0x7127_512f_72f2_7cce);
        assert_eq!(siphash(&KEY, &message::<5>()), 0x0e3e_a96b_5304_a7d0);
        assert_eq!(siphash(&KEY, &message::<6>()), 0xe612_a3cb_9ecb_a951);
        assert_eq!(siphash(&KEY, &message::<7>()), 0xb78d_bfaf_3a8d_83bd);
    }

    #[test]
    fn a_key_is_not_shown() {
        assert_eq!(format!("{KEY:?}"), "Key(redacted)");
    }
}
