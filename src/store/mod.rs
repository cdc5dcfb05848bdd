//! `.kforge-cache/`: blobs by digest, action records, locks. The only writer of that folder.

pub mod cas;
