// From where may somebody ask?

import { isIP, isIPv4 } from 'node:net';
import type { RequestHandler, Response } from 'express';

/** How this machine is spelled in a browser's address bar. */
const LOOPBACK = ['127.0.0.1', 'localhost', '[::1]'];
export const READS = ['GET', 'HEAD', 'OPTIONS'];

const MAX_URL = 4_096;

/** Refuse what nobody types and no page of ours asks for, in words. */
export const boundedUrl: RequestHandler = (req, res, next) => {
  if (req.url.length <= MAX_URL) return next();
  const message = `expected a URL of at most ${MAX_URL} characters, got ${req.url.length}`;
  res.status(414).json({ error: 'Bad request', message });
};

/**
 * Serve only pages of our own: any site that an operator's browser visits could otherwise read the dashboard (under a name of its own
 * that resolves to our address) or change it.
 *
 * @param host where it listens: this machine has 127.0.0.2 and more of them
 * @param loopback it listens on this machine's own address: other names than its and PUBLIC_URL's are refused. On any other address,
 *   where everybody is asked who they are, also addresses (nobody can have one resolve to ours), and, without PUBLIC_URL, all names
 */
export function fromOurPages({
  host: own,
  loopback,
  publicUrl,
}: {
  host: string;
  loopback: boolean;
  publicUrl: string;
}): RequestHandler {
  const ours = publicUrl === '' ? undefined : new URL(publicUrl);
  const names = loopback && isIPv4(own) ? [...new Set([...LOOPBACK, own])] : LOOPBACK;
  return (req, res, next) => {
    const port = req.socket.localPort;
    const hosts = names.flatMap((name) => (port === 80 ? [name, `${name}:80`] : [`${name}:${port}`]));
    const expected = [...hosts, ...(ours ? [ours.host] : [])];
    const host = req.headers.host?.toLowerCase();
    const open = !loopback && (ours === undefined || isAddress(host));
    if (!host || !(open || expected.includes(host))) {
      return refuse(res, `Host: expected ${expected.join(', ')}, got ${shown(host)}`);
    }
    if (READS.includes(req.method)) return next();

    const { origin, 'sec-fetch-site': site, 'content-type': type } = req.headers;
    const origins = [
      ...(host === ours?.host ? [] : [`http://${host}`]),
      ...(ours ? [ours.origin] : loopback ? [] : [`https://${host}`]),
    ];
    if (origin !== undefined && !origins.includes(origin)) {
      return refuse(res, `Origin: expected ${origins.join(' or ')}, got ${shown(origin)}`);
    }
    if (site !== undefined && site !== 'same-origin' && site !== 'none') {
      return refuse(res, `Sec-Fetch-Site: expected same-origin or none, got ${shown(String(site))}`);
    }
    // Forms and text/plain are what a foreign page can send without asking first: a form must bring a token (access.ts).
    const empty = req.headers['transfer-encoding'] === undefined && Number(req.headers['content-length'] ?? 0) === 0;
    if (type === undefined ? !empty : !/^application\/(json|x-www-form-urlencoded)\s*(;|$)/i.test(type)) {
      return refuse(res, `Content-Type: expected application/json or a form of our own, got ${shown(type)}`);
    }
    next();
  };
}

const isAddress = (host = '') => isIP(host.replace(/:\d+$/, '').replace(/^\[(.*)\]$/, '$1')) > 0;

/** In words; the board shows the one as a headline and the other below it. */
export function refuse(res: Response, message: string): void {
  res.status(403).json({ error: 'Refused', message });
}

function shown(value: string | undefined): string {
  return value === undefined ? 'none' : JSON.stringify(value.slice(0, 100));
}
