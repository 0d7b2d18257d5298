//! A workload's token: a memory file that its proxy inherits, renewed for as long as the proxy
//! runs.
//!
//! A renewed token is appended as a line of its own. Whoever reads the file meanwhile has the older
//! one whole, and the beginning of the newer one at most: the last line that has an end counts.

use std::fs::File;
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, SystemTime};

use meltemi_ca::{Caller, TokenSigner};

use crate::memfd;

/// How long a token is good for. Source: Kubernetes, `expirationSeconds` of Istio's projected
/// token.
const LIFETIME: Duration = Duration::from_secs(12 * 3600);
/// How often the wall clock is looked at.
const SLICE: Duration = Duration::from_secs(30);
/// After a failure.
const RETRY: Duration = Duration::from_secs(60);

/// The file, and when it is to be renewed.
#[derive(Debug)]
pub(crate) struct TokenFile {
    file: File,
    caller: Caller,
    lifetime: Duration,
    /// When its newest token was made.
    made: SystemTime,
    due: SystemTime,
}

impl TokenFile {
    /// With a first token.
    pub(crate) fn new(signer: &TokenSigner, caller: Caller) -> anyhow::Result<Self> {
        Self::with(signer, caller, LIFETIME, SystemTime::now())
    }

    fn with(
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

    /// For the process that is to inherit it.
    pub(crate) fn descriptor(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Waits until half of the token's life is over, by the wall clock: a machine that sleeps stops
    /// every other one. Cancellation safe.
    pub(crate) async fn wait(&self) {
        self.wait_by(SystemTime::now).await;
    }

    async fn wait_by(&self, clock: impl Fn() -> SystemTime) {
        loop {
            let now = clock();
            match self.due.duration_since(now) {
                // A clock that was set back makes the newest token one of the future, which nobody
                // takes.
                Ok(left) if !left.is_zero() && now >= self.made => {
                    tokio::time::sleep(left.min(SLICE)).await
                }
                _ => return,
            }
        }
    }

    /// Appends a new token.
    pub(crate) fn renew(&mut self, signer: &TokenSigner) -> anyhow::Result<()> {
        let now = SystemTime::now();
        self.append(signer, now)
            .inspect_err(|_| (self.made, self.due) = (now, now + RETRY))
    }

    fn append(&mut self, signer: &TokenSigner, now: SystemTime) -> anyhow::Result<()> {
        let token = signer.sign_at(&self.caller, self.lifetime, now)?;
        // Never half of an earlier line before it, if that could not be written whole.
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

    /// As a proxy opens it: anew, by the number that it inherited.
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
        let mut file = TokenFile::with(&signer, caller(), life, now - 2 * life).unwrap();
        let [old] = &lines(&file)[..] else {
            panic!("one token at first")
        };
        assert!(review.review(old).await.is_err(), "its life is over");
        file.wait().await;
        file.renew(&signer).unwrap();
        let [_, new] = &lines(&file)[..] else {
            panic!("another one behind it")
        };
        assert_eq!(review.review(new).await.unwrap(), caller());

        // Long ago was when the machine fell asleep; now the next one is due after half of a life.
        assert!(file.due > now + life / 4 && file.due <= SystemTime::now() + life / 2);
    }

    #[tokio::test(start_paused = true)]
    async fn the_wall_clock_says_when() {
        let (signer, life, now) = (
            TokenSigner::generate().unwrap(),
            Duration::from_secs(100),
            SystemTime::now(),
        );

        let file = TokenFile::with(&signer, caller(), life, now).unwrap();
        let started = tokio::time::Instant::now();
        file.wait_by(|| now + started.elapsed()).await;
        assert_eq!(started.elapsed().as_secs(), 50);

        // Slept through, and set back.
        for moved in [now + life, now - life] {
            tokio::time::timeout(SLICE, file.wait_by(|| moved))
                .await
                .expect("it is due at once");
        }
    }
}
