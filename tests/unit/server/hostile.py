"""Addresses by which a server has been made to reach what its clients cannot."""

_LOOPBACK = (
    *("127.0.0.1", "127.1", "127.0.1", "127.0.0.1.", "2130706433", "0x7f000001", "0x7f.0.0.1", "0x7f.1"),
    *("0177.0.0.1", "017700000001", "0177.0.0.01", "127.0.0.0x1", "127.000.000.001", "0", "0.0.0.0", "00", "0x0"),
    *(
        "[::1]",
        "[::]",
        "[0:0:0:0:0:0:0:1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
    ),
    *(
        "[2002:7f00:1::]",
        "[2001:0:7f00:1::]",
        "[fe80::1]",
        "[fe80::1%25lo]",
        "[fc00::1]",
        "[fd00:ec2::254]",
        "[fec0::1]",
    ),
    *("[ff02::1]", "[::1", "::1", "[v1.a]", "[127.0.0.1]", "127.0.0.256", "127.255.255.254", "1", "4294967295"),
)
_PRIVATE = (
    *("10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.0.1", "169.254.169.254", "100.64.0.1", "192.0.0.1"),
    *("192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"),
    *(
        "192.88.99.1",
        "[2001:db8::1]",
        "[::ffff:10.0.0.1]",
        "[::ffff:a9fe:a9fe]",
        "2852039166",
        "0xa9fea9fe",
        "169.254.43518",
    ),
)
_WAYS_OF_WRITING = (
    *(
        "http:///path",
        "http://",
        "https:",
        "//example.org/",
        "example.org",
        "",
        "http:example.org",
        "http:/example.org",
    ),
    *("file:///etc/passwd", "gopher://example.org/", "ftp://example.org/", "dict://example.org:11211/", "data:,x"),
    *(
        "unix:///var/run/docker.sock",
        "javascript:alert(1)",
        "ldap://example.org",
        "jar:http://example.org!/",
        "ws://a.org",
    ),
    *(
        "http://user@example.org/",
        "http://user:pw@example.org/",
        "http://example.org@127.0.0.1/",
        "http://@example.org/",
    ),
    *("http://127.0.0.1#@example.org/", "http://example.org#fragment", "http://127.0.0.1\\@example.org/"),
    *(
        "http://example.org\\@127.0.0.1/",
        "http:\\\\127.0.0.1\\",
        "http://example.org/\\@127.0.0.1/",
        "http://127.0.0.1%2f@example.org/",
        "http://exa%6dple.org/",
    ),
    *("http://example.org:0/", "http://example.org:99999/", "http://example.org:-1/", "http://example.org:x/"),
    *("http://example.org:/", "http://example.org:80:80/", "http://example.org:22/", "http://example.org:25/"),
    *("http://example.org:6 380/", "http://example.org:٨٠/", "http://exam ple.org/", "http://example.org/a b"),
    *("http://example.org/\r\nX-Evil: 1", "http://example.org/\n", "http://example.org\t/", " http://example.org/"),
    *(
        "http://\x00example.org/",
        "http://example.org/\x00",
        "http://①②⑦.⓪.⓪.①/",
        "http://127。0。0。1/",
        "http://exämple.org/",
    ),
    *(
        "http://-example.org/",
        "http://example-.org/",
        "http://.example.org/",
        "http://example..org/",
        "http://example.org./",
    ),
    *("http://" + "a" * 64 + ".org/", "http://" + "a." * 127 + "org/", "http://example.org/" + "a" * 2048),
    *("http://[]/", "http://[::1]evil/", "http://[::1]:x/", "http://a[::1]/", "http://example.org]/", "http://{a}/"),
)
_NO_TEXT: tuple[object, ...] = (0, True, 1.5, [], {}, ["http://example.org/"])

HOSTILE_URLS: tuple[object, ...] = (
    *(f"http://{host}:8017/hook" for host in (*_LOOPBACK, *_PRIVATE)),
    *(f"https://{host}/" for host in _PRIVATE),
    *_WAYS_OF_WRITING,
    *_NO_TEXT,
)
"""None of them may lead to a connection."""

REBOUND = (
    *("127.0.0.1", "127.255.0.1", "0.0.0.0", "10.1.2.3", "172.16.5.4", "192.168.1.1", "169.254.169.254", "100.64.0.1"),
    *("224.0.0.1", "240.0.0.1", "255.255.255.255", "192.88.99.1", "::1", "::", "::ffff:127.0.0.1", "::ffff:10.0.0.1"),
    *("fe80::1", "fe80::1%eth0", "fc00::1", "fec0::1", "ff02::1", "64:ff9b::7f00:1", "2002:7f00:1::", "2001:0:1::1"),
)
"""Addresses that a name may turn out to have."""
