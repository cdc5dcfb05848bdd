//! The bytes of the records file. Everything is little-endian; lengths are LEB128.
//!
//! file   = HEADER frame*
//! frame  = MAGIC, length of the entries: u32, first 16 bytes of BLAKE3(length, entries), entries
//! entry  = length, kind: u8, body
//! record = key, count, (name, digest)* of the outputs, finished: u64, wall: u64, count, (name, value)* of the parts
//! latest = digest, used: u64, step
//! used   = digest, used: u64
//!
//! Times are seconds since 1970.

use super::Record;
use crate::{
    digest::Digest,
    store::{key::KeyParts, outputs::Outputs},
};
use std::ops::Range;

/// First bytes of the file. Another version of the format has another header.
pub const HEADER: &[u8] = b"kforge records 2\n";

/// Where a scan looks for the next frame behind a damaged one.
const MAGIC: [u8; 4] = *b"\xf5kfR";
const CHECKSUM: usize = 16;
const FRAME_HEADER: usize = MAGIC.len() + 4 + CHECKSUM;

const RECORD: u8 = 1;
const LATEST: u8 = 2;
const USED: u8 = 3;

#[derive(Debug, PartialEq)]
pub enum Entry {
    Record(Record),
    Latest {
        step: String,
        key: Digest,
        used_unix: u64,
    },
    /// A rewrite keeps with this when a record was last used that no step names any more.
    Used {
        key: Digest,
        used_unix: u64,
    },
}

/// As much of an entry as the index needs.
pub enum Peek<'a> {
    Record(Digest),
    Latest(&'a str, Digest, u64),
    Used(Digest, u64),
}

/// What [`scan`] finds, as ranges of the file.
#[derive(Debug, PartialEq, Eq)]
pub enum Scan {
    Frame { entries: Range<usize>, frame: Range<usize> },
    Damage(Range<usize>),
}

/// Frames and damaged parts of `bytes` from `start` on. A last frame that ends behind the end of `bytes` is neither.
pub fn scan(bytes: &[u8], start: usize) -> impl Iterator<Item = Scan> {
    let mut at = start;
    std::iter::from_fn(move || {
        if at >= bytes.len() {
            return None;
        }
        if let Some(entries) = valid(bytes, at) {
            let frame = at..entries.end;
            at = frame.end;
            return Some(Scan::Frame { entries, frame });
        }
        let damage = at;
        let next = (at + 1..bytes.len()).find(|&it| bytes[it..].starts_with(&MAGIC) && valid(bytes, it).is_some());
        at = next.unwrap_or(bytes.len());
        (next.is_some() || !torn(&bytes[damage..])).then_some(Scan::Damage(damage..at))
    })
}

/// The range of the entries of the frame at `at`, if it is whole and its checksum right.
fn valid(bytes: &[u8], at: usize) -> Option<Range<usize>> {
    let header = bytes.get(at..at + FRAME_HEADER)?;
    let rest = header.strip_prefix(&MAGIC)?;
    let (length, checksum) = rest.split_at(4);
    let start = at + FRAME_HEADER;
    let range = start..start.checked_add(u32::from_le_bytes(length.try_into().ok()?) as usize)?;
    let entries = bytes.get(range.clone())?;
    (digest(length, entries) == checksum).then_some(range)
}

/// The last bytes look like the beginning of a frame whose end was never written.
fn torn(tail: &[u8]) -> bool {
    let magic = tail.len().min(MAGIC.len());
    tail[..magic] == MAGIC[..magic]
        && tail
            .get(4..8)
            .and_then(|it| it.try_into().ok())
            .is_none_or(|it| FRAME_HEADER + u32::from_le_bytes(it) as usize > tail.len())
}

fn digest(length: &[u8], entries: &[u8]) -> [u8; CHECKSUM] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(length).update(entries);
    let mut checksum = [0; CHECKSUM];
    checksum.copy_from_slice(&hasher.finalize().as_bytes()[..CHECKSUM]);
    checksum
}

/// Appends one frame of these entries.
pub fn encode_frame(entries: &[Vec<u8>], out: &mut Vec<u8>) {
    let mut body = Vec::new();
    for entry in entries {
        put_length(&mut body, entry.len());
        body.extend_from_slice(entry);
    }
    // 4 GiB in one commit cannot happen: an entry is about a kilobyte and a commit at most one for each step.
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes();
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&length);
    out.extend_from_slice(&digest(&length, &body));
    out.extend_from_slice(&body);
}

/// Ranges of the entries within the entries of a frame.
pub fn entries(bytes: &[u8], frame: Range<usize>) -> Vec<Range<usize>> {
    let mut reader = Reader(&bytes[frame.clone()]);
    let mut found = Vec::new();
    while let Some(body) = reader.length().and_then(|it| reader.take(it)) {
        let end = frame.end - reader.0.len();
        found.push(end - body.len()..end);
    }
    found
}

pub fn encode_record(record: &Record) -> Vec<u8> {
    let mut out = vec![RECORD];
    out.extend_from_slice(record.key.as_bytes());
    put_length(&mut out, record.outputs.len());
    for (name, digest) in record.outputs.iter() {
        put_text(&mut out, name);
        out.extend_from_slice(digest.as_bytes());
    }
    out.extend_from_slice(&record.finished_unix.to_le_bytes());
    out.extend_from_slice(&record.wall_us.to_le_bytes());
    put_length(&mut out, record.parts.len());
    for (name, value) in record.parts.iter() {
        put_text(&mut out, name);
        put_text(&mut out, value);
    }
    out
}

pub fn encode_latest(step: &str, key: &Digest, used_unix: u64) -> Vec<u8> {
    let mut out = vec![LATEST];
    out.extend_from_slice(key.as_bytes());
    out.extend_from_slice(&used_unix.to_le_bytes());
    put_text(&mut out, step);
    out
}

pub fn encode_used(key: &Digest, used_unix: u64) -> Vec<u8> {
    let mut out = vec![USED];
    out.extend_from_slice(key.as_bytes());
    out.extend_from_slice(&used_unix.to_le_bytes());
    out
}

pub fn peek(entry: &[u8]) -> Option<Peek<'_>> {
    let mut reader = Reader(entry);
    match reader.byte()? {
        RECORD => Some(Peek::Record(reader.digest()?)),
        LATEST => {
            let (key, used) = (reader.digest()?, reader.u64()?);
            Some(Peek::Latest(reader.text()?, key, used))
        }
        USED => Some(Peek::Used(reader.digest()?, reader.u64()?)),
        _ => None,
    }
}

/// Nothing for an entry that this version does not understand.
pub fn decode(entry: &[u8]) -> Option<Entry> {
    let mut reader = Reader(entry);
    match reader.byte()? {
        RECORD => {
            let (key, outputs) = (reader.digest()?, reader.outputs()?);
            let (finished_unix, wall_us) = (reader.u64()?, reader.u64()?);
            let mut parts = KeyParts::new();
            for _ in 0..reader.length()? {
                parts.set(reader.text()?, reader.text()?);
            }
            Some(Entry::Record(Record { key, parts, outputs, finished_unix, wall_us }))
        }
        LATEST => {
            let (key, used_unix) = (reader.digest()?, reader.u64()?);
            Some(Entry::Latest { step: reader.text()?.to_owned(), key, used_unix })
        }
        USED => Some(Entry::Used { key: reader.digest()?, used_unix: reader.u64()? }),
        _ => None,
    }
}

/// The outputs of a record; its parts, many more, are not even looked at.
pub fn decode_outputs(entry: &[u8]) -> Option<Outputs> {
    let mut reader = Reader(entry);
    if reader.byte()? != RECORD {
        return None;
    }
    reader.digest()?;
    reader.outputs()
}

fn put_length(out: &mut Vec<u8>, length: usize) {
    let mut rest = length;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_length(out, text.len());
    out.extend_from_slice(text.as_bytes());
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|it| it[0])
    }

    fn length(&mut self) -> Option<usize> {
        let mut length = 0;
        for shift in (0..usize::BITS).step_by(7) {
            let byte = self.byte()?;
            length |= usize::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(length);
            }
        }
        None
    }

    fn u64(&mut self) -> Option<u64> {
        self.take(8)?.try_into().ok().map(u64::from_le_bytes)
    }

    fn digest(&mut self) -> Option<Digest> {
        self.take(32)?.try_into().ok().map(Digest::from_bytes)
    }

    fn outputs(&mut self) -> Option<Outputs> {
        (0..self.length()?).map(|_| Some((self.text()?, self.digest()?))).collect()
    }

    fn text(&mut self) -> Option<&'a str> {
        let length = self.length()?;
        std::str::from_utf8(self.take(length)?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record() -> impl Strategy<Value = Record> {
        let text = "[a-zé.]{0,9}";
        (
            proptest::collection::vec((text, ".{0,200}"), 0..9),
            proptest::collection::btree_map(text, any::<[u8; 32]>().prop_map(Digest::from_bytes), 0..4),
            any::<(u64, u64)>(),
        )
            .prop_map(|(parts, outputs, (finished_unix, wall_us))| {
                let parts: KeyParts = parts.into_iter().collect();
                Record { key: parts.key(), parts, outputs: outputs.into_iter().collect(), finished_unix, wall_us }
            })
    }

    proptest! {
        #![proptest_config(crate::testing::cases(256))]
        #[test]
        fn entries_read_back_as_written(records in proptest::collection::vec(record(), 0..5), step in ".{0,40}", used_unix: u64) {
            let mut expected: Vec<_> = records.iter().cloned().map(Entry::Record).collect();
            let mut encoded: Vec<_> = records.iter().map(encode_record).collect();
            let key = Digest::of(b"k");
            encoded.extend([encode_latest(&step, &key, used_unix), encode_used(&key, used_unix)]);
            expected.extend([Entry::Latest { step, key, used_unix }, Entry::Used { key, used_unix }]);
            let mut bytes = Vec::new();
            encode_frame(&encoded, &mut bytes);
            let Some(Scan::Frame { entries: range, frame }) = scan(&bytes, 0).next() else { panic!("no frame") };
            prop_assert_eq!(frame, 0..bytes.len());
            let found: Vec<_> = entries(&bytes, range).into_iter().filter_map(|it| decode(&bytes[it])).collect();
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = scan(&bytes, 0).count();
            let _ = decode(&bytes);
            let _ = entries(&bytes, 0..bytes.len());
        }
    }
}
