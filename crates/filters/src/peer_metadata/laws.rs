//! Laws: what a peer says of itself is read back as it was written, and nothing that it can say is
//! a panic.

use proptest::prelude::*;
use proptest::sample::Index;

use super::preamble::{self, Read};
use super::*;

fn info() -> impl Strategy<Value = PeerInfo> {
    let word = || "[a-zA-Z0-9 é=,/~-]{0,12}".prop_map(Box::<str>::from);
    (
        word(),
        word(),
        word(),
        word(),
        word(),
        "[a-z]{1,8}",
        "[a-z0-9]{1,4}",
    )
        .prop_map(
            |(name, namespace, cluster, workload, owner, service, revision)| PeerInfo {
                name,
                namespace,
                cluster,
                workload,
                owner,
                app: service.as_str().into(),
                version: revision.as_str().into(),
                canonical_service: service.into(),
                canonical_revision: revision.into(),
            },
        )
}

proptest! {
    #[test]
    fn a_header_is_read_back_as_it_was_written(info in info()) {
        prop_assert_eq!(PeerInfo::decode(info.encode().as_bytes()), Some(info));
    }

    #[test]
    fn no_header_is_a_panic(
        noise in prop::collection::vec(any::<u8>(), 0..300),
        text in "[A-Za-z0-9+/=]{0,300}",
        info in info(),
        changes in prop::collection::vec((any::<Index>(), any::<u8>()), 0..6),
    ) {
        let mut changed = info.encode().into_bytes();
        for (at, value) in changes {
            let at = at.index(changed.len());
            changed[at] = value;
        }
        let mut cache = PeerCache::default();
        for header in [noise, text.into_bytes(), changed] {
            let read = PeerInfo::decode(&header);
            prop_assert_eq!(cache.decode(b"id", &header).map(|peer| (*peer).clone()), read);
        }
    }

    #[test]
    fn a_preamble_is_read_back_from_any_pieces(
        info in info(),
        tail in prop::collection::vec(any::<u8>(), 0..50),
        cut in any::<Index>(),
    ) {
        let written = preamble::write("sidecar~id", &info);
        let whole = [&written[..], &tail].concat();
        prop_assert_eq!(preamble::read(&whole), Read::Peer(written.len(), Some(Arc::new(info))));
        let cut = cut.index(written.len());
        match preamble::read(&whole[..cut]) {
            // It asks for more than there is, and never for the application's bytes.
            Read::More(wanted) => prop_assert!(cut < wanted && wanted <= written.len(), "{cut} {wanted}"),
            Read::Absent => prop_assert_eq!(cut, 0),
            other => prop_assert!(false, "{other:?}"),
        }
    }

    #[test]
    fn no_preamble_is_a_panic_or_longer_than_it_may_be(
        magic in any::<bool>(),
        noise in prop::collection::vec(any::<u8>(), 0..100),
    ) {
        let start = if magic { &preamble::MAGIC.to_be_bytes()[..] } else { b"" };
        match preamble::read(&[start, &noise].concat()) {
            Read::More(wanted) => prop_assert!(wanted <= preamble::HEADER_LEN + preamble::MAX_BODY),
            Read::Peer(length, _) => prop_assert!(length <= start.len() + noise.len()),
            Read::Absent => {}
        }
    }
}
