//! Keys: hashes over everything that a value depends on.

/// The hash of everything that a value depends on. Equal keys mean equal values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key([u8; 32]);

#[cfg(any(feature = "redis", test))]
impl Key {
    /// The hash itself.
    pub(super) const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// Derives keys that also depend on a fixed context, such as the model and its precision.
#[derive(Debug, Clone)]
pub struct KeyNamespace(blake3::Hasher);

impl KeyNamespace {
    /// A namespace for the context that `parts` describe, in this order.
    #[must_use]
    pub fn new(parts: &[&str]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("cutline 2026-11 cache key");
        add(&mut hasher, &(parts.len() as u64).to_le_bytes());
        parts.iter().for_each(|part| add(&mut hasher, part.as_bytes()));
        Self(hasher)
    }

    /// The key of the value of this `kind` that depends on `parts`, in this order.
    #[must_use]
    pub fn key(&self, kind: &str, parts: &[&[u8]]) -> Key {
        let mut hasher = self.0.clone();
        add(&mut hasher, kind.as_bytes());
        parts.iter().for_each(|part| add(&mut hasher, part));
        Key(*hasher.finalize().as_bytes())
    }
}

/// Hashes the length before the bytes, so that different lists of parts never hash the same bytes.
fn add(hasher: &mut blake3::Hasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn context_kind_and_parts_all_change_the_key() {
        let namespace = KeyNamespace::new(&["digest", "f32", "avx2"]);
        let keys = [
            namespace.key("a", &[b"one", b"two"]),
            namespace.key("b", &[b"one", b"two"]),
            namespace.key("a", &[b"two", b"one"]),
            namespace.key("a", &[b"onetwo", b""]),
            namespace.key("a", &[b"onetwo"]),
            namespace.key("a", &[]),
            KeyNamespace::new(&["digest", "bf16", "avx2"]).key("a", &[b"one", b"two"]),
            KeyNamespace::new(&["digest", "f32avx2", ""]).key("a", &[b"one", b"two"]),
        ];
        assert_eq!(keys.iter().collect::<HashSet<_>>().len(), keys.len());
        assert_eq!(keys[0], namespace.key("a", &[b"one", b"two"]));
    }
}
