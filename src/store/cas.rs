//! Blobs by BLAKE3 digest.
