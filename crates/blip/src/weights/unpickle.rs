//! Reads the pickle of a PyTorch file, as data: classes are names, and nothing is called.
//!
//! Values refer to each other by index. The memory therefore grows with the bytes of the pickle alone:
//! a value that is used twice is not copied, and dropping nested values needs no recursion.

use std::collections::HashMap;

/// The index of a value.
type Id = usize;

/// A value of a pickle.
#[derive(Debug)]
enum Value<'p> {
    Class {
        module: &'p str,
        name: &'p str,
    },
    Number(i64),
    Text(&'p str),
    Tuple(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// What a call would return.
    Call {
        callable: Id,
        arguments: Id,
    },
    /// An object outside the pickle; here always a storage.
    Persistent(Id),
    /// Anything that no description of a tensor contains.
    Other,
}

/// A tensor as the pickle describes it. Strides and offset count elements.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PickledTensor<'p> {
    pub(super) name: &'p str,
    /// The class of the storage, such as `FloatStorage`.
    pub(super) storage_class: &'p str,
    /// The name of the storage in the archive.
    pub(super) storage: &'p str,
    pub(super) offset: u64,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
}

/// The tensors of a pickled state dictionary.
///
/// # Errors
/// What is wrong, in words.
pub(super) fn tensors(pickle: &[u8]) -> Result<Vec<PickledTensor<'_>>, String> {
    let mut machine = Machine { rest: pickle, ..Machine::default() };
    let top = machine.run()?;
    let Some(Value::Dict(items)) = machine.values.get(top) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for &(name, value) in items {
        let Some(Value::Text(name)) = machine.values.get(name) else { continue };
        let Some(arguments) = machine.rebuilt(value) else { continue };
        let tensor = machine.tensor(name, arguments);
        found.push(tensor.ok_or_else(|| format!("the tensor `{name}` is described incompletely"))?);
    }
    Ok(found)
}

/// The virtual machine of pickles.
#[derive(Default)]
struct Machine<'p> {
    /// The bytes that have not been read yet.
    rest: &'p [u8],
    values: Vec<Value<'p>>,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

const CUT_OFF: &str = "its pickle is cut off";
const EMPTY: &str = "its pickle takes more values than it has";

impl<'p> Machine<'p> {
    /// Runs to the end; the value that is left.
    fn run(&mut self) -> Result<Id, String> {
        loop {
            let [operation] = *self.bytes(1)? else { return Err(CUT_OFF.to_owned()) };
            if operation == b'.' {
                return self.pop();
            }
            self.step(operation)?;
        }
    }

    fn step(&mut self, operation: u8) -> Result<(), String> {
        match operation {
            // PROTO
            0x80 => {
                self.bytes(1)?;
            }
            // MARK
            b'(' => self.marks.push(self.stack.len()),
            // BINPUT, LONG_BINPUT
            b'q' | b'r' => {
                let slot = self.number(if operation == b'q' { 1 } else { 4 })? as u32;
                self.memo.insert(slot, *self.stack.last().ok_or(EMPTY)?);
            }
            // BINGET, LONG_BINGET
            b'h' | b'j' => {
                let slot = self.number(if operation == b'h' { 1 } else { 4 })? as u32;
                let value = self.memo.get(&slot).ok_or("its pickle repeats an unknown value")?;
                self.stack.push(*value);
            }
            // SETITEM, SETITEMS
            b's' | b'u' => {
                let items = if operation == b's' { self.last(2)? } else { self.marked()? };
                self.set_items(&items)?;
            }
            // APPEND, APPENDS
            b'a' | b'e' => {
                let _ = if operation == b'a' { self.last(1)? } else { self.marked()? };
                self.stack.last().ok_or(EMPTY)?;
            }
            // BUILD
            b'b' => self.build()?,
            _ => {
                let value = self.value(operation)?;
                self.stack.push(self.values.len());
                self.values.push(value);
            }
        }
        Ok(())
    }

    /// The value that an operation makes.
    fn value(&mut self, operation: u8) -> Result<Value<'p>, String> {
        Ok(match operation {
            // GLOBAL
            b'c' => Value::Class { module: self.line()?, name: self.line()? },
            // BININT1, BININT2, BININT, LONG1
            b'K' => Value::Number(self.number(1)?),
            b'M' => Value::Number(self.number(2)?),
            b'J' => Value::Number(i64::from(self.number(4)? as u32 as i32)),
            0x8a => self.long()?,
            // BINUNICODE
            b'X' => {
                let length = self.number(4)? as usize;
                Value::Text(text(self.bytes(length)?)?)
            }
            // EMPTY_TUPLE, TUPLE1, TUPLE2, TUPLE3, TUPLE
            b')' => Value::Tuple(Vec::new()),
            0x85..=0x87 => Value::Tuple(self.last(usize::from(operation - 0x84))?),
            b't' => Value::Tuple(self.marked()?),
            // EMPTY_DICT, DICT
            b'}' => Value::Dict(Vec::new()),
            b'd' => Value::Dict(pairs(&self.marked()?)?),
            // BINPERSID
            b'Q' => Value::Persistent(self.pop()?),
            // REDUCE, NEWOBJ
            b'R' | 0x81 => {
                let (arguments, callable) = (self.pop()?, self.pop()?);
                match self.values.get(callable) {
                    Some(Value::Class {
                        module: "collections",
                        name: "OrderedDict" | "defaultdict",
                    }) => Value::Dict(Vec::new()),
                    _ => Value::Call { callable, arguments },
                }
            }
            // BINFLOAT
            b'G' => self.bytes(8).map(|_| Value::Other)?,
            // NONE, NEWTRUE, NEWFALSE, EMPTY_LIST
            b'N' | 0x88 | 0x89 | b']' => Value::Other,
            other => return Err(format!("its pickle has the unknown operation {other:#04x}")),
        })
    }

    /// LONG1: a number of any length; those of more than eight bytes describe no tensor.
    fn long(&mut self) -> Result<Value<'p>, String> {
        let length = self.number(1)? as usize;
        let bytes = self.bytes(length)?;
        let Some(sign) = bytes.last() else { return Ok(Value::Number(0)) };
        if bytes.len() > 8 {
            return Ok(Value::Other);
        }
        let mut all = [if *sign >= 0x80 { 0xFF } else { 0 }; 8];
        all[..bytes.len()].copy_from_slice(bytes);
        Ok(Value::Number(i64::from_le_bytes(all)))
    }

    fn set_items(&mut self, items: &[Id]) -> Result<(), String> {
        let items = pairs(items)?;
        match self.stack.last().and_then(|id| self.values.get_mut(*id)) {
            Some(Value::Dict(dict)) => dict.extend(items),
            _ => return Err("its pickle fills something that is no dictionary".to_owned()),
        }
        Ok(())
    }

    /// Gives an object its state. A dictionary takes its items; of anything else only the state is of
    /// interest.
    fn build(&mut self) -> Result<(), String> {
        let (state, object) = (self.pop()?, self.pop()?);
        let items = match self.values.get(state) {
            Some(Value::Dict(items)) => items.clone(),
            _ => Vec::new(),
        };
        let kept = match self.values.get_mut(object) {
            Some(Value::Dict(dict)) => {
                dict.extend(items);
                object
            }
            _ => state,
        };
        self.stack.push(kept);
        Ok(())
    }

    /// The next bytes.
    fn bytes(&mut self, count: usize) -> Result<&'p [u8], String> {
        let (bytes, rest) = self.rest.split_at_checked(count).ok_or(CUT_OFF)?;
        self.rest = rest;
        Ok(bytes)
    }

    /// The next bytes as a little-endian number; at most four.
    fn number(&mut self, bytes: usize) -> Result<i64, String> {
        let bytes = self.bytes(bytes)?;
        Ok(bytes.iter().rev().fold(0, |number, byte| number << 8 | i64::from(*byte)))
    }

    /// The text up to the next line break.
    fn line(&mut self) -> Result<&'p str, String> {
        let length = self.rest.iter().position(|byte| *byte == b'\n').ok_or(CUT_OFF)?;
        let line = self.bytes(length + 1)?;
        text(&line[..length])
    }

    fn pop(&mut self) -> Result<Id, String> {
        // Values below a mark belong to another collection.
        match self.marks.last() {
            Some(mark) if *mark == self.stack.len() => Err(EMPTY.to_owned()),
            _ => self.stack.pop().ok_or_else(|| EMPTY.to_owned()),
        }
    }

    /// Takes the last values, the oldest first.
    fn last(&mut self, count: usize) -> Result<Vec<Id>, String> {
        let mut values = (0..count).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
        values.reverse();
        Ok(values)
    }

    /// Takes all values above the last mark.
    fn marked(&mut self) -> Result<Vec<Id>, String> {
        let mark = self.marks.pop().ok_or("its pickle lacks the start of a collection")?;
        Ok(self.stack.split_off(mark))
    }

    fn call(&self, id: Id) -> Option<(&'p str, &'p str, &[Id])> {
        let Value::Call { callable, arguments } = self.values.get(id)? else { return None };
        let Value::Class { module, name } = self.values.get(*callable)? else { return None };
        Some((module, name, self.tuple(*arguments)?))
    }

    fn tuple(&self, id: Id) -> Option<&[Id]> {
        match self.values.get(id)? {
            Value::Tuple(items) => Some(items),
            _ => None,
        }
    }

    /// The arguments of `_rebuild_tensor_v2`, which may be wrapped once: for parameters and for
    /// subclasses of tensors. `None` for anything that is no tensor.
    fn rebuilt(&self, id: Id) -> Option<&[Id]> {
        const REBUILD: (&str, &str) = ("torch._utils", "_rebuild_tensor_v2");
        let (module, name, arguments) = self.call(id)?;
        match (module, name) {
            REBUILD => Some(arguments),
            ("torch._utils", "_rebuild_parameter") => {
                let (module, name, inner) = self.call(*arguments.first()?)?;
                ((module, name) == REBUILD).then_some(inner)
            }
            ("torch._tensor", "_rebuild_from_type_v2") => {
                match self.values.get(*arguments.first()?)? {
                    Value::Class { module, name } if (*module, *name) == REBUILD => {
                        self.tuple(*arguments.get(2)?)
                    }
                    _ => None,
                }
            }
            _ => None,
        }
    }

    /// A tensor from the arguments storage, offset, shape and strides.
    fn tensor(&self, name: &'p str, arguments: &[Id]) -> Option<PickledTensor<'p>> {
        let [storage, offset, shape, strides, ..] = arguments else { return None };
        let Value::Persistent(storage) = self.values.get(*storage)? else { return None };
        // `("storage", class, name in the archive, device, number of elements)`
        let [_, class, storage, ..] = self.tuple(*storage)? else { return None };
        let Value::Class { name: storage_class, .. } = self.values.get(*class)? else {
            return None;
        };
        let Value::Text(storage) = self.values.get(*storage)? else { return None };
        let sizes = |tuple: Id| -> Option<Vec<usize>> {
            self.tuple(tuple)?.iter().map(|id| usize::try_from(self.size(*id)?).ok()).collect()
        };
        let (shape, strides) = (sizes(*shape)?, sizes(*strides)?);
        (shape.len() == strides.len()).then_some(PickledTensor {
            name,
            storage_class,
            storage,
            offset: self.size(*offset)?,
            shape,
            strides,
        })
    }

    fn size(&self, id: Id) -> Option<u64> {
        match self.values.get(id)? {
            Value::Number(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }
}

fn text(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes).map_err(|_| "its pickle has a text that is not UTF-8".to_owned())
}

fn pairs(items: &[Id]) -> Result<Vec<(Id, Id)>, String> {
    match items.as_chunks::<2>() {
        (pairs, []) => Ok(pairs.iter().map(|[key, value]| (*key, *value)).collect()),
        _ => Err("its pickle has a key without a value".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The operations that describe a tensor of two numbers in a storage of this class.
    fn tensor(class: &str) -> Vec<u8> {
        let storage = |class: &str| {
            let name =
                format!("X\x07\0\0\0storagectorch\n{class}\nX\x01\0\0\x000X\x03\0\0\0cpuK\x02");
            format!("({name}tQ").into_bytes()
        };
        let rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n(".to_vec();
        [rebuild, storage(class), b"K\x01K\x02\x85K\x01\x85\x89NtR".to_vec()].concat()
    }

    fn dictionary(value: &[u8]) -> Vec<u8> {
        [b"\x80\x02}q\0X\x01\0\0\0a", value, b"s."].concat()
    }

    #[test]
    fn a_tensor_is_read_plain_and_wrapped() {
        let plain = tensor("HalfStorage");
        let parameter = [b"ctorch._utils\n_rebuild_parameter\n(", &plain[..], b"\x89NtR"].concat();
        for value in [plain, parameter] {
            let pickle = dictionary(&value);
            let expected = PickledTensor {
                name: "a",
                storage_class: "HalfStorage",
                storage: "0",
                offset: 1,
                shape: vec![2],
                strides: vec![1],
            };
            assert_eq!(tensors(&pickle).unwrap(), [expected]);
        }
    }

    #[test]
    fn values_that_are_no_tensors_are_left_out() {
        for value in
            [&b"K\x05"[..], b"]q\x01(K\x01K\x02e", b"cos\nsystem\nX\x02\0\0\0ls\x85R", b"G12345678"]
        {
            assert_eq!(tensors(&dictionary(value)).unwrap(), [], "{value:?}");
        }
        assert_eq!(tensors(b"N.").unwrap(), []);
    }

    #[test]
    fn numbers_have_a_sign() {
        let number = |bytes: &[u8]| {
            let pickle = [bytes, b"."].concat();
            let mut machine = Machine { rest: &pickle, ..Machine::default() };
            let id = machine.run().unwrap();
            match machine.values[id] {
                Value::Number(number) => Some(number),
                _ => None,
            }
        };
        assert_eq!(number(b"J\xFF\xFF\xFF\xFF"), Some(-1));
        assert_eq!(number(b"M\xFF\xFF"), Some(65_535));
        assert_eq!(number(b"\x8a\x00"), Some(0));
        assert_eq!(number(b"\x8a\x01\x80"), Some(-128));
        assert_eq!(number(b"\x8a\x02\x80\x00"), Some(128));
        assert_eq!(number(&[&b"\x8a\xFF"[..], &[1; 255]].concat()), None);
    }

    /// A million nested tuples overflowed the stack, and forty doublings need terabytes, if values are
    /// copied and dropped one inside the other.
    #[test]
    fn nested_and_repeated_values_cost_what_their_bytes_cost() {
        let nested = [&b"N"[..], &[0x85; 1_000_000], b"."].concat();
        let doubled = [&b"Nq\0"[..], &b"h\0h\0\x86q\0".repeat(40), b"."].concat();
        let lists = [&b"]"[..], &b"]a".repeat(1_000_000), b"."].concat();
        let calls = [&b"N"[..], &b"NR".repeat(1_000_000), b"."].concat();
        for pickle in [nested, doubled, lists, calls] {
            let small_stack = std::thread::Builder::new().stack_size(64 << 10);
            let thread = small_stack.spawn(move || tensors(&pickle).map(|found| found.len()));
            assert_eq!(thread.unwrap().join().unwrap(), Ok(0));
        }
        // A dictionary that contains itself.
        assert_eq!(tensors(b"}q\0X\x01\0\0\0ah\0s.").unwrap(), []);
    }

    #[test]
    fn broken_pickles_are_refused_with_a_reason() {
        for (pickle, reason) in [
            (&b""[..], "cut off"),
            (b"X\xFF\xFF\xFF\xFFab", "cut off"),
            (b"X\x01\0\0\0\xFF.", "UTF-8"),
            (b"cnoline", "cut off"),
            (b".", "takes more"),
            (b"K\x01(\x85", "takes more"),
            (b"t.", "start of a collection"),
            (b"h\x07.", "unknown value"),
            (b"}(K\x01u.", "key without"),
            (b"NNNs.", "no dictionary"),
            (b"\xFF.", "0xff"),
        ] {
            let error = tensors(pickle).unwrap_err();
            assert!(error.contains(reason), "{pickle:?}: {error}");
        }
        let mut incomplete = tensor("FloatStorage");
        // The shape becomes a number.
        let at = incomplete.len() - 10;
        assert_eq!(incomplete[at..at + 3], *b"K\x02\x85");
        incomplete.remove(at + 2);
        assert!(tensors(&dictionary(&incomplete)).unwrap_err().contains("`a`"));
    }
}
