//! Values of statements, and of the columns of their results.

use std::borrow::Cow;

/// A value for a statement. Each variant has a type of the database, also if there is no value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value<'a> {
    Integer(Option<i64>),
    Real(Option<f64>),
    Text(Option<Cow<'a, str>>),
    Blob(Option<Cow<'a, [u8]>>),
    Bool(bool),
}

#[cfg(feature = "postgres")]
impl Value<'_> {
    /// The same value, kept.
    pub(crate) fn owned(&self) -> Value<'static> {
        match self {
            Self::Integer(value) => Value::Integer(*value),
            Self::Real(value) => Value::Real(*value),
            Self::Text(value) => Value::Text(value.as_ref().map(|text| text.to_string().into())),
            Self::Blob(value) => Value::Blob(value.as_ref().map(|bytes| bytes.to_vec().into())),
            Self::Bool(value) => Value::Bool(*value),
        }
    }
}

/// A value of a result.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Cell<'a> {
    Null,
    Integer(i64),
    Real(f64),
    Text(&'a str),
    Blob(&'a [u8]),
}

macro_rules! values_from {
    ($($from:ty, $value:ident => $made:expr;)+) => {$(
        impl<'a> From<$from> for Value<'a> {
            fn from($value: $from) -> Self {
                $made
            }
        }
    )+};
}

values_from! {
    i64, value => Self::Integer(Some(value));
    u32, value => Self::Integer(Some(value.into()));
    u64, value => Self::Integer(Some(signed(value)));
    usize, value => Self::Integer(Some(signed(value as u64)));
    Option<i64>, value => Self::Integer(value);
    Option<u32>, value => Self::Integer(value.map(i64::from));
    Option<u64>, value => Self::Integer(value.map(signed));
    f64, value => Self::Real(Some(value));
    Option<f64>, value => Self::Real(value);
    bool, value => Self::Bool(value);
    &'a str, value => Self::Text(Some(Cow::Borrowed(value)));
    &'a String, value => Self::Text(Some(Cow::Borrowed(value)));
    String, value => Self::Text(Some(Cow::Owned(value)));
    &'a Option<String>, value => Self::Text(value.as_deref().map(Cow::Borrowed));
    &'a [u8], value => Self::Blob(Some(Cow::Borrowed(value)));
    &'a [u8; 32], value => Self::Blob(Some(Cow::Borrowed(value)));
    &'a Vec<u8>, value => Self::Blob(Some(Cow::Borrowed(value)));
}

/// Databases have no larger numbers.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The values of a statement.
macro_rules! values {
    ($($value:expr),* $(,)?) => {
        &[$($crate::sql::Value::from($value)),*]
    };
}
pub(crate) use values;

/// What a column may be read as.
pub(crate) trait Column: Sized {
    /// `None`: it is something else.
    fn read(cell: Cell<'_>) -> Option<Self>;
}

impl Column for i64 {
    fn read(cell: Cell<'_>) -> Option<Self> {
        match cell {
            Cell::Integer(value) => Some(value),
            _ => None,
        }
    }
}

impl Column for u64 {
    fn read(cell: Cell<'_>) -> Option<Self> {
        i64::read(cell).and_then(|value| value.try_into().ok())
    }
}

impl Column for u32 {
    fn read(cell: Cell<'_>) -> Option<Self> {
        i64::read(cell).and_then(|value| value.try_into().ok())
    }
}

impl Column for usize {
    fn read(cell: Cell<'_>) -> Option<Self> {
        i64::read(cell).and_then(|value| value.try_into().ok())
    }
}

impl Column for f64 {
    fn read(cell: Cell<'_>) -> Option<Self> {
        match cell {
            Cell::Real(value) => Some(value),
            // Times, which fit for some hundred thousand years.
            Cell::Integer(value) => Some(value as f64),
            _ => None,
        }
    }
}

impl Column for f32 {
    fn read(cell: Cell<'_>) -> Option<Self> {
        f64::read(cell).map(|value| value as f32)
    }
}

impl Column for bool {
    fn read(cell: Cell<'_>) -> Option<Self> {
        match cell {
            Cell::Integer(value) => Some(value != 0),
            _ => None,
        }
    }
}

impl Column for String {
    fn read(cell: Cell<'_>) -> Option<Self> {
        match cell {
            Cell::Text(value) => Some(value.to_owned()),
            _ => None,
        }
    }
}

impl Column for Vec<u8> {
    fn read(cell: Cell<'_>) -> Option<Self> {
        match cell {
            Cell::Blob(value) => Some(value.to_owned()),
            _ => None,
        }
    }
}

impl Column for [u8; 32] {
    fn read(cell: Cell<'_>) -> Option<Self> {
        match cell {
            Cell::Blob(value) => value.try_into().ok(),
            _ => None,
        }
    }
}

impl<T: Column> Column for Option<T> {
    fn read(cell: Cell<'_>) -> Option<Self> {
        match cell {
            Cell::Null => Some(None),
            other => T::read(other).map(Some),
        }
    }
}
