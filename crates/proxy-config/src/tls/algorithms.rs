//! Names of cipher suites and key exchange groups, as numbers. Source: IANA "TLS Parameters";
//! BoringSSL `ssl.h`.

use meltemi_filters::{Rejection, Scope};

/// Cipher suites of TLS 1.2: OpenSSL's name, the standard's name, the number.
const SUITES: [(&str, &str, u16); 6] = [
    (
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
        0xc02b,
    ),
    (
        "ECDHE-ECDSA-AES256-GCM-SHA384",
        "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
        0xc02c,
    ),
    (
        "ECDHE-RSA-AES128-GCM-SHA256",
        "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
        0xc02f,
    ),
    (
        "ECDHE-RSA-AES256-GCM-SHA384",
        "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
        0xc030,
    ),
    (
        "ECDHE-RSA-CHACHA20-POLY1305",
        "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
        0xcca8,
    ),
    (
        "ECDHE-ECDSA-CHACHA20-POLY1305",
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
        0xcca9,
    ),
];

/// Suites without forward secrecy or authenticated encryption: what a list allows need not be
/// spoken.
const NEVER_SPOKEN: [&str; 14] = [
    "AES128-GCM-SHA256",
    "AES256-GCM-SHA384",
    "AES128-SHA",
    "AES256-SHA",
    "AES128-SHA256",
    "AES256-SHA256",
    "ECDHE-ECDSA-AES128-SHA",
    "ECDHE-ECDSA-AES256-SHA",
    "ECDHE-ECDSA-AES128-SHA256",
    "ECDHE-RSA-AES128-SHA",
    "ECDHE-RSA-AES256-SHA",
    "ECDHE-RSA-AES128-SHA256",
    "ECDHE-RSA-AES256-SHA384",
    "DES-CBC3-SHA",
];

/// Groups for key exchange: the names in use, and the number.
const GROUPS: [(&[&str], u16); 4] = [
    (&["X25519MLKEM768"], 0x11ec),
    (&["X25519"], 0x001d),
    (&["P-256", "prime256v1", "secp256r1"], 0x0017),
    (&["P-384", "secp384r1"], 0x0018),
];

/// A list of suites; one of which nothing is spoken refuses the resource, since it would mean all
/// suites.
pub(super) fn cipher_suites(names: &[String], scope: &mut Scope) -> Result<Box<[u16]>, Rejection> {
    let mut numbers = Vec::new();

    // BoringSSL: suites in brackets are wanted equally.
    for name in names
        .iter()
        .flat_map(|entry| entry.trim_matches(['[', ']']).split('|'))
    {
        match SUITES
            .iter()
            .find(|(openssl, standard, _)| name == *openssl || name == *standard)
        {
            Some((.., number)) => numbers.push(*number),
            None if NEVER_SPOKEN.contains(&name) => {}
            None => scope.warn(
                "tls_params.cipher_suites",
                format!("{name:?} is unknown and not spoken"),
            ),
        }
    }

    match numbers.is_empty() && !names.is_empty() {
        true => scope.refuse("tls_params.cipher_suites names no suite that is spoken"),
        false => Ok(numbers.into()),
    }
}

/// A list of groups; one of which nothing is spoken refuses the resource.
pub(super) fn groups(names: &[String], scope: &mut Scope) -> Result<Box<[u16]>, Rejection> {
    let mut numbers = Vec::new();
    for name in names {
        match GROUPS
            .iter()
            .find(|(known, _)| known.contains(&name.as_str()))
        {
            Some((_, number)) => numbers.push(*number),
            None => scope.warn(
                "tls_params.ecdh_curves",
                format!("{name:?} is unknown and not spoken"),
            ),
        }
    }

    match numbers.is_empty() && !names.is_empty() {
        true => scope.refuse("tls_params.ecdh_curves names no group that is spoken"),
        false => Ok(numbers.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn what_is_allowed_and_spoken_is_kept_in_order() {
        let mut scope = Scope::new();
        let istio = [
            "ECDHE-ECDSA-AES256-GCM-SHA384",
            "[ECDHE-RSA-AES256-GCM-SHA384|ECDHE-ECDSA-AES128-GCM-SHA256]",
            "AES256-GCM-SHA384",
        ];

        assert_eq!(
            &*cipher_suites(&names(&istio), &mut scope).expect("spoken"),
            [0xc02c, 0xc030, 0xc02b]
        );

        assert_eq!(
            &*groups(&names(&["P-256", "X25519"]), &mut scope).expect("spoken"),
            [0x17, 0x1d]
        );

        assert!(cipher_suites(&[], &mut scope).expect("all").is_empty());
        assert!(
            scope.into_warnings().is_empty(),
            "what is never spoken is no loss"
        );
    }

    #[test]
    fn a_list_of_which_nothing_is_spoken_does_not_mean_everything() {
        let mut scope = Scope::new();
        assert!(cipher_suites(&names(&["AES128-SHA"]), &mut scope).is_err());
        assert!(groups(&names(&["P-521"]), &mut scope).is_err());
        assert!(groups(&names(&["P-521", "P-384"]), &mut scope).is_ok());
        assert_eq!(scope.into_warnings().len(), 2);
    }
}
