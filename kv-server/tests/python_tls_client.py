"""A stock Thrift client over TLS. Usage: python_tls_client.py kv.thrift PORT CA CERTIFICATE KEY"""
import ssl
import sys

import thriftpy2
from thriftpy2.protocol import TBinaryProtocolFactory
from thriftpy2.rpc import make_client
from thriftpy2.transport import TFramedTransportFactory

idl, port, ca, certificate, key = sys.argv[1:]
kv = thriftpy2.load(idl, module_name="kv_thrift")


def connect(with_certificate):
    context = ssl.create_default_context(cafile=ca)
    if with_certificate:
        context.load_cert_chain(certificate, key)
    return make_client(kv.Kv, "localhost", int(port), proto_factory=TBinaryProtocolFactory(),
                       trans_factory=TFramedTransportFactory(), timeout=10_000, ssl_context=context)


client = connect(True)
client.put(kv.PutRequest(key=b"k", value=b"x" * 1_000_000))
assert len(client.range(kv.RangeRequest(key=b"k")).kvs[0].value) == 1_000_000
client.close()
try:
    connect(False).range(kv.RangeRequest(key=b"k"))
except Exception:
    print("refused without a certificate, served with one")
else:
    raise AssertionError("served without a certificate")
