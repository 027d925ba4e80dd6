//! Which offsets and times the messages of a DELIVER have.

use crate::error::{Error, Result};
use crate::wire::{key, Header};

pub(super) fn offsets_of(header: &Header, count: usize) -> Result<Vec<u64>> {
    let wrong = || Error::malformed(format!("the offsets of a delivery are not those of its {count} messages"));
    let first = header.uint(key::OFFSET);
    if !header.has(key::RANGES) {
        let end = first.checked_add(count as u64).ok_or_else(wrong)?;
        return Ok((first..end).collect());
    }
    let mut offsets = Vec::with_capacity(count);
    let mut before = None;
    for (first, end) in header.pairs(key::RANGES) {
        if first >= end || before.is_some_and(|before| first <= before) || end - first > (count - offsets.len()) as u64
        {
            return Err(wrong());
        }
        offsets.extend(first..end);
        before = Some(end);
    }
    if offsets.len() != count || offsets.first() != Some(&first) {
        return Err(wrong());
    }
    Ok(offsets)
}

pub(super) fn times_of(header: &Header, count: usize) -> Result<Vec<u64>> {
    let wrong = || Error::malformed(format!("the times of a delivery are not those of its {count} messages"));
    let mut times = Vec::with_capacity(count);
    for (run, time) in header.pairs(key::TIMESTAMPS) {
        if run > (count - times.len()) as u64 {
            return Err(wrong());
        }
        times.resize(times.len() + run as usize, time);
    }
    if times.len() == count {
        Ok(times)
    } else {
        Err(wrong())
    }
}
