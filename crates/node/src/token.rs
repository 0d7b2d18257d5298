//! The token by which a workload's proxy authenticates: a memory file that the proxy inherits and
//! the node renews while the proxy runs.
//!
//! Each renewed token is appended as a line. Readers use the last line that ends with a line feed,
//! so a reader that runs during the append sees the previous token whole.

use std::fs::File;
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, SystemTime};

use meltemi_ca::{Caller, TokenSigner};

use crate::memfd;

/// Validity of a token. Source: `expirationSeconds` of the projected token in Istio's sidecar
/// template.
const LIFETIME: Duration = Duration::from_secs(12 * 3600);
/// How often the wall clock is checked.
const CLOCK_CHECK: Duration = Duration::from_secs(30);
/// Delay until a failed renewal is tried again.
const RETRY: Duration = Duration::from_secs(60);

/// A token file and the time of its next renewal.
#[derive(Debug)]
pub(crate) struct TokenFile {
    file: File,
    caller: Caller,
    lifetime: Duration,
    /// When the newest token was signed.
    made: SystemTime,
    due: SystemTime,
}

impl TokenFile {
    /// Creates the file with a first token.
    pub(crate) fn new(signer: &TokenSigner, caller: Caller) -> anyhow::Result<Self> {
        Self::new_at(signer, caller, LIFETIME, SystemTime::now())
    }

    fn new_at(
        signer: &TokenSigner,
        caller: Caller,
        lifetime: Duration,
        now: SystemTime,
    ) -> anyhow::Result<Self> {
        let mut new = Self {
            file: memfd::holding(c"token", &[])?,
            caller,
            lifetime,
            made: now,
            due: now,
        };
        new.append(signer, now)?;
        Ok(new)
    }

    /// The descriptor that the proxy inherits.
    pub(crate) fn descriptor(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Waits until half of the token's validity has passed by the wall clock. Timers do not
    /// suffice: they stop while the machine is suspended. Cancellation safe.
    pub(crate) async fn wait_until_due(&self) {
        self.wait_by(SystemTime::now).await;
    }

    async fn wait_by(&self, clock: impl Fn() -> SystemTime) {
        loop {
            let now = clock();
            match self.due.duration_since(now) {
                // If the clock was set back, the newest token was signed in the future and
                // verifiers reject it: renew at once.
                Ok(left) if !left.is_zero() && now >= self.made => {
                    tokio::time::sleep(left.min(CLOCK_CHECK)).await
                }
                _ => return,
            }
        }
    }

    /// Appends a new token. After a failure the next renewal is due in a minute.
    pub(crate) fn renew(&mut self, signer: &TokenSigner) -> anyhow::Result<()> {
        let now = SystemTime::now();
        self.append(signer, now)
            .inspect_err(|_| (self.made, self.due) = (now, now + RETRY))
    }

    fn append(&mut self, signer: &TokenSigner, now: SystemTime) -> anyhow::Result<()> {
        let token = signer.sign_at(&self.caller, self.lifetime, now)?;
        // Cut a line that could not be written whole: the next token must start on a line of its
        // own.
        let end = self.file.metadata()?.len();
        if let Err(error) = self.file.write_all_at(format!("{token}\n").as_bytes(), end) {
            self.file.set_len(end)?;
            return Err(error.into());
        }
        (self.made, self.due) = (now, now + self.lifetime / 2);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use meltemi_ca::{JwtTokenReview, TokenReview as _};

    use super::*;

    fn caller() -> Caller {
        Caller {
            namespace: "shop".into(),
            service_account: "reviews".into(),
            pod: Some("reviews-v1-0".into()),
        }
    }

    /// Reads the file as a proxy does: opens it anew by the inherited number.
    fn lines(file: &TokenFile) -> Vec<String> {
        let text = std::fs::read_to_string(format!("/proc/self/fd/{}", file.descriptor())).unwrap();
        assert!(text.ends_with('\n'), "every line is whole");
        text.lines().map(str::to_owned).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_renewed_at_half_of_its_life_and_taken() {
        let signer = TokenSigner::generate().unwrap();
        let review = JwtTokenReview::new(signer.public_key_pem()).unwrap();
        let (life, now) = (Duration::from_secs(120), SystemTime::now());
        let mut file = TokenFile::new_at(&signer, caller(), life, now - 2 * life).unwrap();
        let [old] = &lines(&file)[..] else {
            panic!("one token at first")
        };
        assert!(review.review(old).await.is_err(), "its life is over");
        file.wait_until_due().await;
        file.renew(&signer).unwrap();
        let [_, new] = &lines(&file)[..] else {
            panic!("another one behind it")
        };
        assert_eq!(review.review(new).await.unwrap(), caller());

        // The renewal counts from now, not from the time when the machine was suspended.
        assert!(file.due > now + life / 4 && file.due <= SystemTime::now() + life / 2);
    }

    #[tokio::test(start_paused = true)]
    async fn renewal_follows_the_wall_clock() {
        let (signer, life, now) = (
            TokenSigner::generate().unwrap(),
            Duration::from_secs(100),
            SystemTime::now(),
        );

        let file = TokenFile::new_at(&signer, caller(), life, now).unwrap();
        let started = tokio::time::Instant::now();
        file.wait_by(|| now + started.elapsed()).await;
        assert_eq!(started.elapsed().as_secs(), 50);

        // The machine was suspended past the expiry; the clock was set back.
        for moved in [now + life, now - life] {
            tokio::time::timeout(CLOCK_CHECK, file.wait_by(|| moved))
                .await
                .expect("it is due at once");
        }
    }
}
