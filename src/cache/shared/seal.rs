//! Names and values in the shared cache: keyed hashes, and values that only holders of the secret can make.

use crate::cache::Key;

/// Before every name, so that the rights of a Redis user can be limited to `cutline:*`. The number is that
/// of the format.
const PREFIX: &str = "cutline:1:";

/// Bytes of a MAC.
const MAC: usize = 16;

/// The keys that are derived from the secret.
#[derive(Clone)]
pub(super) struct Seal {
    names: [u8; 32],
    values: [u8; 32],
}

impl Seal {
    pub(super) fn new(secret: &str) -> Self {
        let derive = |context| blake3::derive_key(context, secret.as_bytes());
        Self {
            names: derive("cutline 2026-11 names in a shared cache"),
            values: derive("cutline 2026-11 values in a shared cache"),
        }
    }

    /// The name of the value of `key`.
    pub(super) fn name(&self, key: &Key) -> String {
        format!("{PREFIX}{}", blake3::keyed_hash(&self.names, key.bytes()).to_hex())
    }

    /// `value` with a MAC, which also covers the name: no value can be moved to another name.
    pub(super) fn close(&self, name: &str, value: &[u8]) -> Vec<u8> {
        let mut sealed = self.mac(name, value).to_vec();
        sealed.extend_from_slice(value);
        sealed
    }

    /// The value, if its MAC is right.
    pub(super) fn open<'v>(&self, name: &str, sealed: &'v [u8]) -> Option<&'v [u8]> {
        let (mac, value) = sealed.split_first_chunk::<MAC>()?;
        // Hashes of blake3 are compared in constant time.
        let [own, given] = [self.mac(name, value), *mac].map(|mac| blake3::hash(&mac));
        (own == given).then_some(value)
    }

    fn mac(&self, name: &str, value: &[u8]) -> [u8; MAC] {
        let mut hasher = blake3::Hasher::new_keyed(&self.values);
        hasher.update(&(name.len() as u64).to_le_bytes());
        hasher.update(name.as_bytes());
        hasher.update(value);
        let mut mac = [0; MAC];
        hasher.finalize_xof().fill(&mut mac);
        mac
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::KeyNamespace;

    fn key(kind: &str) -> Key {
        KeyNamespace::new(&[]).key(kind, &[])
    }

    #[test]
    fn a_value_opens_only_unchanged_under_its_name_and_with_the_secret() {
        let seal = Seal::new("secret");
        let name = seal.name(&key("one"));
        let sealed = seal.close(&name, b"a cat");
        assert_eq!(seal.open(&name, &sealed), Some(&b"a cat"[..]));
        assert_eq!(seal.open(&seal.name(&key("two")), &sealed), None, "moved");
        assert_eq!(Seal::new("other").open(&name, &sealed), None, "another secret");
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert_eq!(seal.open(&name, &changed), None, "byte {at}");
        }
        for length in 0..sealed.len() {
            assert_eq!(seal.open(&name, &sealed[..length]), None, "cut to {length}");
        }
    }

    #[test]
    fn names_depend_on_key_and_secret_and_do_not_tell_the_key() {
        let [one, other] = ["secret", "other"].map(|secret| Seal::new(secret).name(&key("one")));
        assert_ne!(one, other);
        assert_ne!(one, Seal::new("secret").name(&key("two")));
        assert!(one.starts_with("cutline:1:") && one.len() == PREFIX.len() + 64);
    }
}
