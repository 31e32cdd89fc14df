"""System calls that a program may make; all others fail.

The plain ones, in the order of their names (numbers of linux/unistd.h; where a machine has no such
call it has no number):
read write readv writev pread64 pwrite64 preadv pwritev close fstat newfstatat stat lstat statx
statfs fstatfs lseek open openat creat access faccessat getdents getdents64 readlink readlinkat
getcwd chdir fchdir mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2 link linkat
symlink symlinkat umask ftruncate fsync fdatasync flock dup dup2 dup3 pipe pipe2 eventfd2
fadvise64 select pselect6 poll ppoll epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait
mmap mprotect munmap mremap brk madvise msync mincore membarrier rt_sigaction rt_sigprocmask
rt_sigreturn rt_sigsuspend rt_sigpending rt_sigtimedwait sigaltstack pause alarm getitimer
setitimer nanosleep clock_nanosleep clock_gettime clock_getres gettimeofday time times
restart_syscall futex set_robust_list set_tid_address rseq arch_prctl exit exit_group wait4
waitid sched_yield sched_getaffinity sched_get_priority_max sched_get_priority_min
sched_getparam sched_getscheduler getcpu getpid gettid getppid getuid geteuid getgid getegid
getgroups getresuid getresgid getpgrp getpgid getsid getpriority getrusage getrlimit uname
sysinfo getrandom recvfrom recvmsg shutdown getsockname getpeername getsockopt close_range
faccessat2 epoll_pwait2 futex_waitv.
What is absent on purpose: processes (fork, execve), sockets that reach out (socket, connect,
sendmsg), signals to others (kill, tkill, pidfd_send_signal), metadata of files (chmod, chown,
utimensat, setxattr, truncate by path), memory that outlives the process or belongs to others
(shmget, memfd_create, process_vm_readv, ptrace), priorities, namespaces, io_uring, bpf.
"""

PLAIN = {
    "x86_64": (
        0, 1, 19, 20, 17, 18, 295, 296, 3, 5, 262, 4, 6, 332, 137, 138, 8, 2, 257, 85, 21, 269,
        78, 217, 89, 267, 79, 80, 81, 83, 258, 84, 87, 263, 82, 264, 316, 86, 265, 88, 266, 95,
        77, 74, 75, 73, 32, 33, 292, 22, 293, 290, 221, 23, 270, 7, 271, 213, 291, 233, 232,
        281, 9, 10, 11, 25, 12, 28, 26, 27, 324, 13, 14, 15, 130, 127, 128, 131, 34, 37, 36, 38,
        35, 230, 228, 229, 96, 201, 100, 219, 202, 273, 218, 334, 158, 60, 231, 61, 247, 24,
        204, 146, 147, 143, 145, 309, 39, 186, 110, 102, 107, 104, 108, 115, 118, 120, 111, 121,
        124, 140, 98, 97, 63, 99, 318, 45, 47, 48, 51, 52, 55, 436, 439, 441, 449,
    ),
    "aarch64": (
        63, 64, 65, 66, 67, 68, 69, 70, 57, 80, 79, 291, 43, 44, 62, 56, 48, 61, 78, 17, 49, 50,
        34, 35, 38, 276, 37, 36, 166, 46, 82, 83, 32, 23, 24, 59, 19, 223, 72, 73, 20, 21, 22,
        222, 226, 215, 216, 214, 233, 227, 232, 283, 134, 135, 139, 133, 136, 137, 132, 102,
        103, 101, 115, 113, 114, 169, 153, 128, 98, 99, 96, 293, 93, 94, 260, 95, 124, 123, 125,
        126, 121, 120, 168, 172, 178, 173, 174, 175, 176, 177, 158, 148, 150, 155, 156, 141,
        165, 163, 160, 179, 278, 207, 212, 210, 204, 205, 209, 436, 439, 441, 449,
    ),
}  # fmt: skip
CHECKED = {
    "x86_64": {
        "clone": 56, "clone3": 435, "ioctl": 16, "fcntl": 72, "prctl": 157, "prlimit64": 302,
        "socketpair": 53, "sendto": 44, "tgkill": 234,
    },
    "aarch64": {
        "clone": 220, "clone3": 435, "ioctl": 29, "fcntl": 25, "prctl": 167, "prlimit64": 261,
        "socketpair": 199, "sendto": 206, "tgkill": 131,
    },
}  # fmt: skip
"""Calls whose arguments decide."""
AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""The kernel's name of each machine's own calls; a program may try those of another, by `int 0x80`."""
NEWEST = 434
"""Calls above this number came lately: C libraries try them and fall back when there is none."""
