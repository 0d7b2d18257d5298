//! A body with something between its reader and its user: a beginning that was read before, or
//! filters that see every piece.

use std::fmt;
use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;
use http::HeaderMap;

use super::{BodyIn, Data};
use crate::http1::body::BodyError;

/// Sees every piece of a body and returns the piece to pass on.
pub trait PieceFilter {
    /// Takes a piece, empty if there is none with the end. An empty result passes nothing on yet.
    fn pass<'s>(
        &'s mut self,
        piece: Vec<u8>,
        ended: bool,
    ) -> Pin<Box<dyn Future<Output = Result<Vec<u8>, BodyError>> + 's>>;
}

/// See [`BodyIn::Piped`].
pub struct PipedBody<'a> {
    /// Goes before what the rest brings.
    held: Bytes,
    rest: BodyIn<'a>,
    filters: Option<Box<dyn PieceFilter>>,
    /// The filters have seen the end.
    ended: bool,
}

impl fmt::Debug for PipedBody<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PipedBody")
            .field("held", &self.held.len())
            .field("rest", &self.rest)
            .finish_non_exhaustive()
    }
}

impl<'a> PipedBody<'a> {
    pub(super) fn held(held: Bytes, rest: BodyIn<'a>) -> Self {
        Self {
            held,
            rest,
            filters: None,
            ended: false,
        }
    }

    pub(super) fn filtered(rest: BodyIn<'a>, filters: Box<dyn PieceFilter>) -> Self {
        Self {
            held: Bytes::new(),
            rest,
            filters: Some(filters),
            ended: false,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        // Filters may add to a body whose reader has come to its end.
        match self.filters {
            Some(_) => self.ended,
            None => self.held.is_empty() && self.rest.is_empty(),
        }
    }

    pub(super) fn waits_here(&self) -> bool {
        self.rest.waits_here()
    }

    pub(super) async fn next(&mut self) -> Result<Option<Data<'_>>, BodyError> {
        if !self.held.is_empty() {
            return Ok(Some(Data::Owned(std::mem::take(&mut self.held))));
        }

        // Boxed, since the rest may be piped as well.
        let Some(filters) = &mut self.filters else {
            return Box::pin(self.rest.next()).await;
        };
        while !self.ended {
            let piece = Box::pin(self.rest.next()).await?;
            self.ended = piece.is_none();
            let piece = piece.map(|piece| piece.as_slice().to_vec());
            let out = filters.pass(piece.unwrap_or_default(), self.ended).await?;
            if !out.is_empty() {
                return Ok(Some(Data::Owned(out.into())));
            }
        }

        Ok(None)
    }

    pub(super) async fn trailers(&mut self) -> Result<Option<HeaderMap>, BodyError> {
        Box::pin(self.rest.trailers()).await
    }

    pub(super) async fn gone(&mut self) {
        Box::pin(self.rest.gone()).await
    }

    pub(super) fn settle(&mut self) {
        self.rest.settle();
    }
}
