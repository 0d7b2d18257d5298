"""A capture of everything that passes this network namespace.

    sniff.py

Says `capturing`, then answers each line of standard input:
    count TEXT          in how many packets TEXT stood
    between A B         how many packets with TCP payload went between the two IPv4 addresses
"""

import select
import socket
import struct
import sys

ETH_P_ALL = 3
packets = []


def tcp_payload(frame):
    """(source, destination, payload) of a TCP packet, else None. Loopback and Ethernet frames have the same header."""
    if frame[12:14] != b"\x08\x00" or frame[23] != 6:
        return None
    header = 14 + (frame[14] & 15) * 4
    total = 14 + struct.unpack("!H", frame[16:18])[0]
    data = header + (frame[header + 12] >> 4) * 4
    return socket.inet_ntoa(frame[26:30]), socket.inet_ntoa(frame[30:34]), frame[data:total]


def drain(capture):
    while True:
        try:
            packets.append(capture.recv(70000))
        except BlockingIOError:
            return


def answer(line):
    verb, *words = line.split()
    if verb == "count":
        return sum(words[0].encode() in packet for packet in packets)
    found = [tcp for packet in packets if (tcp := tcp_payload(packet))]
    return sum(bool(payload) and {a, b} == set(words) for a, b, payload in found)


def main():
    capture = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    capture.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    capture.setblocking(False)
    print("capturing", flush=True)
    while True:
        readable, _, _ = select.select([capture, sys.stdin], [], [])
        drain(capture)
        if sys.stdin in readable:
            line = sys.stdin.readline()
            if not line:
                return
            print(answer(line), flush=True)


main()
