//! Valid and invalid certificates for the tests of this crate.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SanType, SerialNumber,
};
use time::{Duration, OffsetDateTime};

use crate::{Identity, TrustBundle};

pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
}

/// The content of a leaf. The default is valid but has no names.
pub(crate) struct LeafSpec<'a> {
    pub(crate) uris: &'a [&'a str],
    pub(crate) dns: &'a [&'a str],
    pub(crate) other_name: bool,
    pub(crate) common_name: Option<&'a str>,
    pub(crate) usages: &'a [ExtendedKeyUsagePurpose],
    pub(crate) from: Duration,
    pub(crate) until: Duration,
    pub(crate) serial: u64,
}

impl Default for LeafSpec<'_> {
    fn default() -> Self {
        Self {
            uris: &[],
            dns: &[],
            other_name: false,
            common_name: None,
            usages: &[
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ],
            from: Duration::minutes(-1),
            until: Duration::hours(1),
            serial: 7,
        }
    }
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::OrganizationName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pem = params.self_signed(&key).expect("root").pem();

        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    pub(crate) fn trust(&self) -> TrustBundle {
        TrustBundle::from_pem(self.pem.as_bytes()).expect("root")
    }

    pub(crate) fn leaf(&self, spec: LeafSpec<'_>) -> Identity {
        let (certificate, key) = self.sign(spec);
        Identity::from_pem(certificate.pem().as_bytes(), key.serialize_pem().as_bytes())
            .expect("own leaf")
    }

    /// Signs a leaf, also one that is not a valid [`Identity`].
    pub(crate) fn sign(&self, spec: LeafSpec<'_>) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        if let Some(name) = spec.common_name {
            params.distinguished_name.push(DnType::CommonName, name);
        }
        let ia5 = |text: &str| text.try_into().expect("IA5");
        params.subject_alt_names = spec.uris.iter().map(|uri| SanType::URI(ia5(uri))).collect();
        params
            .subject_alt_names
            .extend(spec.dns.iter().map(|name| SanType::DnsName(ia5(name))));
        if spec.other_name {
            params.subject_alt_names.push(SanType::OtherName((
                vec![1, 3, 6, 1, 4, 1, 311, 20, 2, 3],
                "root@evil".into(),
            )));
        }

        params.extended_key_usages = spec.usages.to_vec();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.serial_number = Some(SerialNumber::from(spec.serial));
        params.not_before = OffsetDateTime::now_utc() + spec.from;
        params.not_after = OffsetDateTime::now_utc() + spec.until;

        (params.signed_by(&key, &self.issuer).expect("leaf"), key)
    }

    pub(crate) fn crl(&self, revoked: &[u64], next_update: Duration) -> String {
        let now = OffsetDateTime::now_utc();
        CertificateRevocationListParams {
            this_update: now - Duration::hours(2),
            next_update: now + next_update,
            crl_number: SerialNumber::from(1u64),
            issuing_distribution_point: None,
            revoked_certs: revoked
                .iter()
                .map(|serial| RevokedCertParams {
                    serial_number: SerialNumber::from(*serial),
                    revocation_time: now - Duration::hours(1),
                    reason_code: None,
                    invalidity_date: None,
                })
                .collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        }
        .signed_by(&self.issuer)
        .expect("CRL")
        .pem()
        .expect("PEM")
    }
}
