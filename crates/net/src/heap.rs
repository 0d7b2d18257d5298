//! The process's heap, as far as its allocator lets others see it. glibc's does; of another allocator
//! nothing is known, and it is left alone.

/// Bytes of the heap that are free but still belong to the process, pages given back among them.
pub fn free() -> usize {
    allocator::free()
}

/// Gives the pages of free memory back to the system.
pub fn trim() {
    allocator::trim();
}

#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "glibc's allocator has no safe wrapper")]
mod allocator {
    pub(super) fn free() -> usize {
        // SAFETY: it takes nothing and only reads the allocator's state, under its locks.
        unsafe { libc::mallinfo2() }.fordblks
    }

    pub(super) fn trim() {
        // SAFETY: it takes the allocator's locks and touches free memory alone.
        unsafe { libc::malloc_trim(0) };
    }
}

#[cfg(not(target_env = "gnu"))]
mod allocator {
    pub(super) fn free() -> usize {
        0
    }

    pub(super) fn trim() {}
}

#[cfg(all(test, target_env = "gnu"))]
mod tests {
    use super::*;

    const MIB: usize = 1024 * 1024;

    #[test]
    fn a_freed_burst_leaves_the_process() {
        let resident = || {
            let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
            let pages = statm.split(' ').nth(1).expect("two fields");
            pages.parse::<usize>().expect("a number") * 4096
        };

        // Small pieces, of which one in a hundred stays: no end of the heap becomes free.
        let mut burst: Vec<Vec<u8>> = (0..100_000).map(|_| vec![1; 1000]).collect();
        let mut index = 0;
        burst.retain(|_| {
            index += 1;
            index % 100 == 0
        });

        let before = resident();
        assert!(free() > MIB * 16);
        trim();
        assert!(before - resident() > MIB * 16, "{before} {}", resident());
        drop(burst);
    }
}
