//! What goes out over a session, and who is given the answers. Producers and consumers know this of their session, and
//! no more.
//!
//! Invariants
//! - no REF is used twice

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

use crate::wire::{key, kind, Frame};

/// What WELCOME says; section 12.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub message_bytes_max: u64,
    pub batch_bytes_max: u64,
    pub batches_in_flight_max: u64,
    pub window_bytes: u64,
    pub credit_messages_max: u64,
    pub credit_bytes_max: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            message_bytes_max: 1 << 20,
            batch_bytes_max: 1 << 20,
            batches_in_flight_max: 1,
            window_bytes: 1 << 20,
            credit_messages_max: 1 << 16,
            credit_bytes_max: 1 << 30,
        }
    }
}

/// What a DONE will cover.
pub(crate) struct Confirmation {
    pub epoch: u64,
    pub covered: usize,
    pub until: Option<u64>,
}

/// Who is given the answer to a REF.
pub(crate) enum Question {
    Open(u64),
    Close(u64),
    Confirm(u64, Confirmation),
    /// Whether the next message may be handed out.
    Leave(u64),
    Request(u64),
}

/// What goes out, and what is asked.
pub(crate) struct Wire {
    /// The session's secret, once there is one.
    pub secret: Option<[u8; 16]>,
    pub outbox: VecDeque<Vec<Bytes>>,
    pub limits: Limits,
    /// The last one that was used.
    pub next_ref: u64,
    pub questions: HashMap<u64, Question>,
}

impl Wire {
    pub fn emit(&mut self, frame: Frame, body: &[Bytes]) {
        let mut frames = Vec::with_capacity(1 + body.len());
        frames.push(frame.done());
        frames.extend_from_slice(body);
        self.outbox.push_back(frames);
    }

    /// A REF whose answer is for a question.
    pub fn expect(&mut self, question: Question) -> u64 {
        self.next_ref += 1;
        self.questions.insert(self.next_ref, question);
        self.next_ref
    }

    pub fn close(&mut self, handle: u64) {
        let question = self.expect(Question::Close(handle));
        self.emit(Frame::new(kind::CLOSE).uint(key::REF, question).uint(key::HANDLE, handle), &[]);
    }
}
